#!/usr/bin/env bash
# Runs the Python client's tests with the system's python3: $1 the daemon, $2 a generated
# _pb2.py, which tells where those are.
set -euo pipefail
package=$TEST_TMPDIR/python
mkdir -p "$package"
cp -rL "$(dirname "$0")/kvcask" "$package/"
cp -L "$(dirname "$2")"/*_pb2.py "$package/kvcask/v1/"
export KVCASKD=$PWD/$1 PYTHONPATH=$package PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 "$(dirname "$0")/tests/test_client.py"
