#!/usr/bin/env bash
# Start a distillery command as one process, as one process per GPU, or so on several nodes of a Slurm allocation.
#
#   launch.sh NODES GPUS_PER_NODE CPUS_PER_NODE COMMAND [ARGUMENT...]
#
# The number of processes is the machine's business: the same command with the same arguments gives the same result.
# Every branch ends with exec, so that the process that Slurm signals is the one that saves its state.
set -euo pipefail
nodes=$1 gpus=$2 cpus=$3
shift 3

# GPUs that distillery.cluster.gpus has granted this job have a process each.
granted=$(($(tr -cd , <<<"${CUDA_VISIBLE_DEVICES:-}" | wc -c) + 1))
if [ -n "${DISTILLERY_GPUS:-}" ] && [ "$gpus" -le 1 ]; then
  gpus=$granted
fi

if [ "$nodes" -le 1 ] && [ "$gpus" -le 1 ]; then
  exec distillery "$@"
fi

# Without GPUs, one process a node.
gpus=$((gpus > 0 ? gpus : 1))

# Trap: with other GPUs granted than processes wanted, processes would share a GPU or leave some idle, without a word.
if [ -n "${DISTILLERY_GPUS:-}" ] && [ "$granted" -ne "$gpus" ]; then
  echo "distillery: gpus_per_node is $gpus, but gpu gives $granted GPUs; leave gpus_per_node out of the profile" >&2
  exit 2
fi
if [ -n "${SLURM_JOB_ID:-}" ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ] && [ "$granted" -ne "$gpus" ]; then
  echo "distillery: gpus_per_node is $gpus, but Slurm granted $granted GPUs on a node; make gres and" \
    "gpus_per_node equal in workflow/profiles/slurm/profile.yaml" >&2
  exit 2
fi

if [ "$nodes" -le 1 ]; then
  exec python -m distillery.cluster.launch --standalone --nproc-per-node="$gpus" -m distillery "$@"
fi

# On several nodes, one task a node runs this script again, as a job step that knows its nodes.
#
# Trap: the step needs its shape as options, for Snakemake's plugin removes all of SLURM_* but the job's number.
# Trap: without --kill-on-bad-exit, the nodes that are left wait for a dead one until the time limit.
# Trap: since Slurm 22.05, srun does not take --cpus-per-task from the job; without it, a node works on one core.
if [ -z "${DISTILLERY_NODES:-}" ]; then
  export DISTILLERY_NODES=$nodes
  exec srun --kill-on-bad-exit=1 --label --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 \
    --cpus-per-task="$cpus" bash "$0" "$nodes" "$gpus" "$cpus" "$@"
fi

# Trap: on some sites a node's name is not its address; MASTER_ADDR says what is.
# Trap: a fixed port meets the port of another job on the same node.
head=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n1)}
exec python -m distillery.cluster.launch --nnodes="$nodes" --node-rank="$SLURM_NODEID" --nproc-per-node="$gpus" \
  --master-addr="$head" --master-port=$((20000 + SLURM_JOB_ID % 20000)) -m distillery "$@"
