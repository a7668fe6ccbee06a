#!/usr/bin/env bash
# A sweep as a Slurm job: Ray runs on all nodes of the job for as long as the sweep does.
# Start: sbatch clusters/slurm.sh search_spaces/cifar100_lt.yaml resources.gpus_per_worker=1 resources.max_concurrent=8
# Watch: tail -f tailtune-JOB.out
# Stop:  scancel JOB: trials end their epoch, and the state is saved; the same sbatch with --resume goes on
# Cost:  the nodes of the job until it ends; nodes do not come and go
# The clone and its .venv (make .venv/.ready) lie on a disk that all nodes share; submit from the clone.
#SBATCH --job-name=tailtune
#SBATCH --output=tailtune-%j.out
#SBATCH --nodes=2
#SBATCH --exclusive                      # `ray symmetric-run` takes no node on which another Ray runs, and stops every Ray at its end
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))    # so that jobs which share a node do not meet

# Whoever knows the token may run code as you: only you can read it, and each job has its own.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')

# Five minutes before the time is up Slurm sends TERM to this script, which hands it on.
srun ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "${SLURM_CPUS_PER_TASK:-1}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" -- \
    python -m orchestrator.sweep --address "$head:$port" "$@" &
job=$!
trap 'kill -TERM "$job"' TERM
wait "$job" || wait "$job"
