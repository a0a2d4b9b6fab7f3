#!/bin/sh
# An example that works without an engine: it starts the job in the background of this machine, and prints its number.
#
#   submit.sh CPUS GPUS MEMORY_MB MINUTES RULE SCRIPT
#
# An engine is one line instead, e.g. LSF:
#   bsub -n "$1" -gpu "num=$2" -M "$3" -W "$4" -J "$5" sh "$6" | sed 's/.*<\([0-9]*\)>.*/\1/'
set -eu
folder=.snakemake/cluster-generic
mkdir -p "$folder"
for script in "$@"; do :; done
# In a session of its own, which Ctrl-C in Snakemake's terminal does not reach.
setsid sh -c 'echo $$ >"$1/$$.pid"; sh "$2" >"$1/$$.log" 2>&1; echo $? >"$1/$$.code"' job "$folder" "$script" \
  >/dev/null 2>&1 </dev/null &
echo $!
