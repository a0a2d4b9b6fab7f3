#!/bin/sh
# Asks jobs to stop, by their numbers: trainings save. See submit.sh.
for job in "$@"; do
  kill -TERM -- "-$job" 2>/dev/null
done
exit 0
