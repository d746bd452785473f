#!/usr/bin/env bash
# Written by ftplan VERSION: 2 node(s) of 8 GPU(s).
set -euo pipefail
cd "$(dirname "$0")"
export NODE_RANK="$SKYPILOT_NODE_RANK" NNODES=2 NPROC_PER_NODE=8
export OMP_NUM_THREADS=8
export FORCE_TORCHRUN=1
export OPTIM_TORCH=0
exec llamafactory-cli train train.yaml "$@"
