#!/usr/bin/env bash
# Written by ftplan VERSION: 1 node(s) of 8 GPU(s).
set -euo pipefail
cd "$(dirname "$0")"
export OMP_NUM_THREADS=8
exec ftplan run plan.json --data data/train.jsonl --run-dir /outputs/run --resume-or-start "$@"
