#!/usr/bin/env bash
# Runs one Python test module: py_test.sh MODULE [package ...]. The packages are what it
# imports from outside; where one is absent the test says SKIPPED and passes.
#
# The interpreter is $KVCASK_PYTHON, else the environment that tools/models/setup made,
# else /usr/bin/python3.
set -euo pipefail

module=$1
shift
home=$(getent passwd "$(id -u)" | cut -d: -f6)
export KVCASK_CACHE=${KVCASK_CACHE:-$home/.cache/kvcask}
python=${KVCASK_PYTHON:-$KVCASK_CACHE/venv/bin/python}
[[ -x $python ]] || python=/usr/bin/python3
export PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

for package in "$@"; do
  if ! "$python" -c "import $package" 2>/dev/null; then
    echo "SKIPPED: $module: $python has no $package (tools/models/setup installs it)"
    exit 0
  fi
done
exec "$python" -m unittest -v "$module"
