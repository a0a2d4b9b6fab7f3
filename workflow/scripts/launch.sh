#!/usr/bin/env bash
# Start a distillery command as one process, as one process per GPU, or so on several nodes of a Slurm allocation.
#
#   launch.sh NODES GPUS_PER_NODE COMMAND [ARGUMENT...]
#
# The number of processes is the machine's business: the same command with the same arguments gives the same result.
set -euo pipefail
nodes=$1 gpus=$2
shift 2

if [ "$nodes" -le 1 ] && [ "$gpus" -le 1 ]; then
  exec distillery "$@"
fi

if [ "$nodes" -le 1 ]; then
  exec torchrun --standalone --nproc-per-node="$gpus" -m distillery "$@"
fi

# On several nodes, one task a node runs this script again, as a job step that knows its nodes.
if [ -z "${DISTILLERY_NODES:-}" ]; then
  export DISTILLERY_NODES=$nodes
  exec srun --kill-on-bad-exit=1 --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} bash "$0" "$nodes" "$gpus" "$@"
fi

# MASTER_ADDR is for sites where a node's name is not its address.
head=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n1)}
exec torchrun --nnodes="$nodes" --node-rank="$SLURM_NODEID" --nproc-per-node="$gpus" \
  --master-addr="$head" --master-port=$((20000 + SLURM_JOB_ID % 20000)) -m distillery "$@"
