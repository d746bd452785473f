#!/usr/bin/env bash
# Run 20250131-120000-3f2a: 2 process(es), global batch 16.
set -euo pipefail
cd "$(dirname "$0")"
export OMP_NUM_THREADS=8
export PYTHONUNBUFFERED=1
export TOKENIZERS_PARALLELISM=false
export TENSORBOARD_LOGGING_DIR=runs/20250131-120000-3f2a/tensorboard
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export PYTORCH_ALLOC_CONF=expandable_segments:True
exec python -m torch.distributed.run --standalone --nproc_per_node 2 -m ftplan.launcher.train job.json
