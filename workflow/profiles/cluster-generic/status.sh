#!/bin/sh
# Whether the job of a number runs, has succeeded or has failed; see submit.sh.
job=.snakemake/cluster-generic/$1
if [ -s "$job.code" ]; then
  [ "$(cat "$job.code")" = 0 ] && echo success || echo failed
elif kill -0 "$1" 2>/dev/null; then
  echo running
else
  echo failed
fi
