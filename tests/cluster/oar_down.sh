#!/bin/bash
# Stop the cluster that oar_up.sh started: its jobs, then the daemons by the pids they wrote.
set -uo pipefail
R=${OAR_ROOT:?folder given to oar_up.sh}
alive() { local s; s=$(ps -o stat= -p "$1" 2>/dev/null) && [[ $s != Z* ]]; }
stop() {
  local p
  [ -s "$1" ] || return 0
  p=$(head -1 "$1")
  kill "${2:--TERM}" "$p" 2>/dev/null || return 0
  for _ in $(seq 200); do alive "$p" || break; sleep .05; done
}
job_ids() { timeout 10 oarstat -J 2>/dev/null | sed -n 's/^ *"Job_Id" : \([0-9]*\),\?$/\1/p'; }
ids=$(job_ids)
if [ -n "$ids" ]; then
  # shellcheck disable=SC2086
  oardel $ids >/dev/null 2>&1
  for _ in $(seq 100); do [ -z "$(job_ids)" ] && break; sleep .2; done
fi
stop /var/run/oar-server.pid
stop "$R/sshd.pid"
stop "$R/pg/data/postmaster.pid" -INT
exit 0
