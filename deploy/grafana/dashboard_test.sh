#!/usr/bin/env bash
exec python3 deploy/grafana/dashboard_test.py "$@"
