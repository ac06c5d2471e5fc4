#!/usr/bin/env bash
# The systemd unit is one that systemd understands, and is hardened: systemd-analyze verify
# finds nothing and its exposure level is "OK" (below 2.5 of 10). Skipped without systemd.
set -euo pipefail
command -v systemd-analyze > /dev/null || { echo "skipped: no systemd-analyze"; exit 0; }
unit="$TEST_TMPDIR/kvcaskd.service"
# The binary is not installed where tests run; everything else is checked as it is.
sed "s|^ExecStart=/usr/bin/kvcaskd|ExecStart=/bin/true|" deploy/systemd/kvcaskd.service > "$unit"
grep -q '^ExecStart=/bin/true' "$unit"
systemd-analyze --man=no verify "$unit" > "$TEST_TMPDIR/out" 2>&1 || { cat "$TEST_TMPDIR/out"; exit 1; }
# What it says of this unit; of others on the machine it may complain.
if grep -F kvcaskd "$TEST_TMPDIR/out"; then exit 1; fi
systemd-analyze security --offline=yes --threshold=25 "$unit" | tail -1
# It can fail.
sed "s/^Type=exec/Typo=exec/" "$unit" > "$TEST_TMPDIR/typo.service"
systemd-analyze --man=no verify "$TEST_TMPDIR/typo.service" 2>&1 | grep -q Typo
sed "/^Protect\|^Restrict\|^System\|^Private/d" "$unit" > "$TEST_TMPDIR/open.service"
if systemd-analyze security --offline=yes --threshold=25 "$TEST_TMPDIR/open.service" > /dev/null; then
  echo "an open unit passes"
  exit 1
fi
