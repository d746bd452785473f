#!/usr/bin/env bash
# Written by ftplan VERSION: 2 node(s) of 8 GPU(s).
set -euo pipefail
cd "$(dirname "$0")"
export NODE_RANK="$SLURM_NODEID" NNODES=2 NPROC_PER_NODE=8
export OMP_NUM_THREADS=8
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
exec accelerate launch --config_file accelerate.yaml --num_machines=2 --num_processes=16 --machine_rank="$NODE_RANK" --main_process_ip="$MASTER_ADDR" --main_process_port="$MASTER_PORT" -m llamafactory.launcher train.yaml "$@"
