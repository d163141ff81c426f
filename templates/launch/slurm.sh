#!/bin/bash
# Slurm: one task a node; on each, pogdiff starts one process for each GPU, and the nodes meet at the first one.
#
#   sbatch slurm.sh [OPTIONS OF pogdiff train]
#   sbatch --nodes 4 --time 8:00:00 slurm.sh -C /shared/myproj --name wide
#
# The project's folder has to be shared by all nodes. Two minutes before the time is up Slurm sends SIGTERM: a
# checkpoint is written, and the same sbatch line goes on there.
#SBATCH --job-name=pogdiff
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.out
set -eu
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
exec srun pogdiff train \
    --gpus "${SLURM_GPUS_ON_NODE:-none}" \
    --nnodes "$SLURM_JOB_NUM_NODES" --rdzv-endpoint "$first:$port" --max-restarts 3 \
    "$@"
