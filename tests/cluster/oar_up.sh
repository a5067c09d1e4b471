#!/bin/bash
# Start a real OAR cluster (PostgreSQL, OAR's sshd on 6667, Almighty) with NODES virtual nodes on
# this one host, as root, without systemd. OAR reads /etc/oar/oar.conf and ~oar only: these are
# edited in place (the original is kept as oar.conf.dist). oar_down.sh stops it.
set -euo pipefail
R=${OAR_ROOT:?folder that the cluster may use; every user must be able to enter it}
PGPORT=${OAR_PGPORT:-15432}
NODES=${NODES:-4} CORES=${CORES:-8} GPUS=${GPUS:-4}    # per node; CORES a multiple of GPUS
PGBIN=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
mkdir -p "$R"; chmod 755 "$R"

if [ ! -d "$R/pg/data" ]; then
  install -d -o postgres -g postgres -m 700 "$R/pg"
  (cd / && runuser -u postgres -- "$PGBIN/initdb" -D "$R/pg/data" -A trust -E UTF8 --no-sync) >/dev/null
fi
(cd / && runuser -u postgres -- "$PGBIN/pg_ctl" -D "$R/pg/data" -w -l "$R/pg/log" -o "-p $PGPORT \
  -k $R/pg -c listen_addresses=127.0.0.1 -c fsync=off -c synchronous_commit=off \
  -c max_connections=200" start) >/dev/null

set_conf() {
  if grep -q "^#\?$1=" /etc/oar/oar.conf; then
    sed -i "s|^#\?$1=.*|$1=\"$2\"|" /etc/oar/oar.conf
  else
    echo "$1=\"$2\"" >>/etc/oar/oar.conf
  fi
}
[ -f /etc/oar/oar.conf.dist ] || cp -p /etc/oar/oar.conf /etc/oar/oar.conf.dist
set_conf DB_PORT "$PGPORT"
set_conf DB_BASE_PASSWD oar
set_conf DB_BASE_PASSWD_RO oar_ro
set_conf LOG_LEVEL 3
# OAR's delays suit large clusters; each would cost a test seconds to minutes.
set_conf SCHEDULER_JOB_SECURITY_TIME 1
set_conf SCHEDULER_MIN_TIME_BETWEEN_2_CALLS 0
set_conf SCHEDULER_GANTT_HOLE_MINIMUM_TIME 1
set_conf JOBDEL_SOFTWALLTIME 3
set_conf JOBDEL_WALLTIME 15
set_conf FINAUD_FREQUENCY 0
# No cpusets: job_resource_manager_cgroups.pl deletes every file of the job's user under the
# temporary folders when that user's last job ends, and the user here may be root.
sed -i 's|^JOB_RESOURCE_MANAGER_PROPERTY_DB_FIELD=|#&|' /etc/oar/oar.conf
chown oar:root /etc/oar/oar.conf; chmod 600 /etc/oar/oar.conf
# OAR's BASH_ENV file sources the user's .bashrc in every bash, endlessly if that runs pyenv.
: >/var/lib/oar/.batch_job_bashrc
cat >/var/lib/oar/.ssh/config <<CONF
Host node*
HostName 127.0.0.1
Host *
ForwardX11 no
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
PasswordAuthentication no
AddressFamily inet
CONF
chown oar:oar /var/lib/oar/.ssh/config
mkdir -p /run/sshd; chmod 755 /run/sshd
/usr/sbin/sshd -f /etc/oar/sshd_config -o PidFile="$R/sshd.pid" -o ListenAddress=127.0.0.1 2>/dev/null
touch /var/log/oar.log; chown oar: /var/log/oar.log

fresh=0
oar-database --check >/dev/null 2>&1 || {
  fresh=1
  oar-database --create --db-admin-user=postgres --db-admin-pass=x -y >"$R/db.log" 2>&1
}
/usr/sbin/oar-server
for _ in $(seq 100); do (echo >/dev/tcp/127.0.0.1/6666) 2>/dev/null && break; sleep .1; done
if [ $fresh = 1 ]; then
  oaradmissionrules -m 2 -N >/dev/null     # rule 2 forbids root to submit
  oarproperty -a host -c -q >/dev/null
  # The last two are those by which Grid'5000 selects nodes.
  for p in cpu core gpu gpudevice gpu_count memnode; do oarproperty -a $p -q >/dev/null; done
  core=0
  for n in $(seq "$NODES"); do for c in $(seq 0 $((CORES - 1))); do
    g=$((c * GPUS / CORES)) core=$((core + 1))
    oarnodesetting -a -h "node$n" -p host="node$n" -p cpu="$n" -p core="$core" -p cpuset="$c" \
      -p gpu=$(((n - 1) * GPUS + g + 1)) -p gpudevice="$g" \
      -p gpu_count="$GPUS" -p memnode=20000 >/dev/null 2>&1
  done; done
fi
oarnodes -s 2>/dev/null | awk '/^[^ ]/{n++} / : Alive/{a++} END{print n" nodes, "a" cores alive"}'
