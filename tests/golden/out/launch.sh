#!/usr/bin/env bash
# Trains the plan beside this script; give the data: ./launch.sh --data FILE.jsonl
set -euo pipefail
exec ftplan run "$(dirname "$0")/plan.json" "$@"
