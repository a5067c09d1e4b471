#!/bin/bash
# Stop the cluster that slurm_up.sh started: its jobs, then the daemons by the pids they wrote.
set -uo pipefail
R=${SLURM_ROOT:?folder given to slurm_up.sh}
export SLURM_CONF=$R/etc/slurm.conf
# Where PID 1 reaps orphans slowly, a zombie still answers kill -0.
alive() { local s; s=$(ps -o stat= -p "$1" 2>/dev/null) && [[ $s != Z* ]]; }
stop() {
  local f p pids=()
  for f; do [ -s "$f" ] && p=$(cat "$f") && kill "$p" 2>/dev/null && pids+=("$p"); done
  for p in ${pids[@]+"${pids[@]}"}; do
    for _ in $(seq 200); do alive "$p" || break; sleep .05; done
  done
}
# Jobs outlive their slurmd: cancel them first.
if [ -n "$(timeout 10 squeue -h -o %A 2>/dev/null)" ]; then
  squeue -h -o %A | sort -u | xargs -r scancel 2>/dev/null
  for _ in $(seq 150); do [ -z "$(squeue -h -o %A 2>/dev/null)" ] && break; sleep .1; done
fi
stop "$R"/pid/slurmd.*.pid
stop "$R/pid/slurmctld.pid"
stop "$R/pid/slurmdbd.pid"
stop "$R/mysql/my.pid"
stop "$R/munge-priv/munged.pid"
exit 0
