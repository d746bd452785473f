#!/usr/bin/env bash
# Written by ftplan VERSION: 1 node(s) of 8 GPU(s).
set -euo pipefail
cd "$(dirname "$0")"
export OMP_NUM_THREADS=8
run_dir=/outputs/run
for saved in "$run_dir"/checkpoints/checkpoint-*/ftplan-manifest.json; do
  if [ -e "$saved" ]; then exec ftplan run --resume --run-dir "$run_dir"; fi
done
# An attempt that ended before its first checkpoint is begun again; its folder may be a mount and stays.
for name in job.json state.json; do
  if [ -e "$run_dir/$name" ]; then mv -- "$run_dir/$name" "$run_dir/$name.$(date +%s)"; fi
done
exec ftplan run plan.json --data data/train.jsonl --run-dir /outputs/run "$@"
