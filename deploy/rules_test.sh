#!/usr/bin/env bash
# promtool (package prometheus) finds the scrape configuration and the rules right, and each
# alert fires when kvcask_rules_test.yml says. Then it is shown that the latter can fail.
set -euo pipefail
cd deploy/prometheus
promtool check config prometheus.yml
promtool check rules kvcask_rules.yml
promtool test rules kvcask_rules_test.yml

cp -L kvcask_rules_test.yml "$TEST_TMPDIR/"
for fault in 's/> 0.95/> 0.99/' 's/== 0 and max_over_time/== 1 and max_over_time/' \
    's/> 0.05/> 0.5/' 's/> 0.2/> 0.3/' 's/> 0.01/> 0.1/' 's/kvcask_queue_age_seconds > 1/kvcask_queue_age_seconds > 9/' \
    's/where="stored"/where="other"/' 's/kvcask_ready == 0/kvcask_ready == 2/' 's/for: 2m/for: 0m/'; do
  sed "$fault" kvcask_rules.yml > "$TEST_TMPDIR/kvcask_rules.yml"
  cmp -s kvcask_rules.yml "$TEST_TMPDIR/kvcask_rules.yml" && { echo "no such text: $fault"; exit 1; }
  if promtool test rules "$TEST_TMPDIR/kvcask_rules_test.yml" > "$TEST_TMPDIR/out" 2>&1; then
    echo "the rules' test did not notice: $fault"
    exit 1
  fi
done
echo "rules: right, and nine faults in them noticed"
