#!/bin/bash
# One training on several machines with GPUs, from the folder of the clone:
#     sbatch --nodes 4 docs/slurm_train.sh --config-file configs/pretrain/updetr_r50_imagenet_60ep.yaml OUTPUT_DIR /shared/run
# A minute of warning is enough to save a checkpoint; requeued or sent again, it goes on from there.
#SBATCH --job-name updetr
#SBATCH --nodes 1
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 104
#SBATCH --time 24:00:00
#SBATCH --signal TERM@60
#SBATCH --requeue
#SBATCH --open-mode append
set -euo pipefail

first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
# Batches of many sizes leave gaps in the memory of a GPU.
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
# The main threads need few cores, the loader workers the others.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "${PROCESSES_PER_NODE:-8}" \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$first_machine:${RDZV_PORT:-29500}" \
    tools/train_net.py --resume "$@"
