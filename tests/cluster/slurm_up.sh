#!/bin/bash
# Start a real SLURM cluster (munge, MariaDB, slurmdbd, slurmctld, NODES slurmd) on this one host,
# as root, without systemd. Everything lives under $SLURM_ROOT and listens on loopback.
# Afterwards: `. $SLURM_ROOT/env.sh` in every shell that uses it; slurm_down.sh stops it.
set -euo pipefail
R=${SLURM_ROOT:?folder that the cluster may use; every user must be able to enter it}
NODES=${NODES:-4} CPUS=${CPUS:-16} MEM_MB=${MEM_MB:-20000} GPUS=${GPUS:-4}
HALF=$((NODES / 2))                    # of the nodes have one type of GPU, the others another
NAME=${NODE_NAMES:-node}               # nodes are called ${NAME}1, …
P=${BASE_PORT:-16817}                  # slurmctld; +2 slurmdbd; +3… slurmd
# Memory limits need the cgroup v1 memory controller: cgroup v2 needs systemd for slurmd.
CGROUP=${CGROUP:-$([ -w /sys/fs/cgroup/memory/cgroup.procs ] && echo 1 || echo 0)}
if [ "$CGROUP" = 1 ]; then
  track=proctrack/cgroup task=task/cgroup ram=yes kill_params=
else
  track=proctrack/linuxproc task=task/none ram=no kill_params=JobAcctGatherParams=OverMemoryKill
fi
export SLURM_CONF=$R/etc/slurm.conf
wait_for() {
  for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return 0; sleep .1; done
  echo "slurm_up: timed out waiting for: $*" >&2
  return 1
}

mkdir -p "$R"/{etc,munge,munge-priv,mysql,state,spool,log,pid,dev}
for i in $(seq "$NODES"); do mkdir -p "$R/spool/$NAME$i"; done
chmod 755 "$R" "$R/etc"; chmod 711 "$R/munge"; chmod 700 "$R/munge-priv" "$R/mysql"
# GRES accepts neither plain files nor a mere count: the stand-in GPUs are copies of /dev/null.
for i in $(seq 0 $((GPUS - 1))); do
  [ -c "$R/dev/gpu$i" ] || mknod -m 666 "$R/dev/gpu$i" c 1 3
done
[ -f "$R/etc/munge.key" ] ||
  (umask 077; dd if=/dev/urandom of="$R/etc/munge.key" bs=128 count=1 status=none)
munged --socket="$R/munge/munge.sock" --key-file="$R/etc/munge.key" \
  --log-file="$R/munge-priv/munged.log" --pid-file="$R/munge-priv/munged.pid" \
  --seed-file="$R/munge-priv/munged.seed" --num-threads=4

cat >"$R/etc/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmctldPort=$P
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits cred_expire (default 120 s) before it starts again.
AuthInfo=socket=$R/munge/munge.sock,cred_expire=10
StateSaveLocation=$R/state
SlurmdSpoolDir=$R/spool/%n
SlurmctldPidFile=$R/pid/slurmctld.pid
SlurmdPidFile=$R/pid/slurmd.%n.pid
SlurmctldLogFile=$R/log/slurmctld.log
SlurmdLogFile=$R/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
ProctrackType=$track
TaskPlugin=$task
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
# On a busy machine a step's launch takes longer than the default 10 s.
MessageTimeout=60
SlurmdTimeout=${SLURMD_TIMEOUT:-20}
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,sched_min_interval=0,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
# Without it an impossible job stays pending instead of being refused.
EnforcePartLimits=ALL
MinJobAge=300
KillWait=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
$kill_params
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=$((P + 2))
AccountingStoragePass=socket=$R/munge/munge.sock
AccountingStorageTRES=gres/gpu
NodeName=DEFAULT CPUs=$CPUS RealMemory=$MEM_MB State=UNKNOWN
NodeName=${NAME}[1-$HALF] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((P + 3))-$((P + 2 + HALF))] Gres=gpu:a100:$GPUS Feature=a100
NodeName=${NAME}[$((HALF + 1))-$NODES] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((P + 3 + HALF))-$((P + 2 + NODES))] Gres=gpu:v100:$GPUS Feature=v100-32g
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=off State=UP
PartitionName=low Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=requeue GraceTime=10 State=UP
CONF
cat >"$R/etc/gres.conf" <<CONF
AutoDetect=off
NodeName=${NAME}[1-$HALF] Name=gpu Type=a100 File=$R/dev/gpu[0-$((GPUS - 1))]
NodeName=${NAME}[$((HALF + 1))-$NODES] Name=gpu Type=v100 File=$R/dev/gpu[0-$((GPUS - 1))]
CONF
cat >"$R/etc/cgroup.conf" <<CONF
CgroupPlugin=cgroup/v1
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=$ram
CONF
echo "export SLURM_CONF=$SLURM_CONF" >"$R/env.sh"

# What failed, and where: the caller removes the folder with the logs.
trap 'echo "slurm_up: line $LINENO failed: $BASH_COMMAND" >&2; tail -n 20 "$R"/log/* >&2' ERR

# MariaDB without grant tables: its socket is in a folder that only root can enter.
# One at a time: of two installations that begin together, one fails now and then.
[ -d "$R/mysql/data" ] || flock "${TMPDIR:-/tmp}/dpeval-mariadb-install" \
  mariadb-install-db --no-defaults --user=root --datadir="$R/mysql/data" --skip-test-db \
  >"$R/log/mariadb-install.log" 2>&1
setsid mariadbd --no-defaults --user=root --skip-grant-tables --skip-networking \
  --datadir="$R/mysql/data" --socket="$R/mysql/my.sock" --pid-file="$R/mysql/my.pid" \
  --log-error="$R/mysql/err.log" --innodb-buffer-pool-size=64M \
  --innodb-flush-log-at-trx-commit=2 --innodb-lock-wait-timeout=900 </dev/null >/dev/null 2>&1 &
wait_for mariadb --no-defaults -S "$R/mysql/my.sock" -e "select 1"
mariadb --no-defaults -S "$R/mysql/my.sock" -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db"
(umask 077; cat >"$R/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$R/munge/munge.sock
DbdHost=localhost
DbdPort=$((P + 2))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
LogFile=$R/log/slurmdbd.log
PidFile=$R/pid/slurmdbd.pid
DebugLevel=info
CONF
)
MYSQL_UNIX_PORT="$R/mysql/my.sock" slurmdbd
wait_for bash -c "</dev/tcp/127.0.0.1/$((P + 2))"
wait_for sacctmgr -n show cluster
sacctmgr -n show cluster test format=cluster | grep -q test || sacctmgr -i add cluster test >/dev/null
# Without an account of its own, a job is charged to root's.
sacctmgr -n show account project@v100 format=account | grep -q project || {
  sacctmgr -i add account project@v100 >/dev/null
  sacctmgr -i add user root account=project@v100 >/dev/null
}

slurmctld
for n in $(seq "$NODES"); do slurmd -N "$NAME$n"; done
all_idle() {
  [ "$(sinfo -h -p main -t idle -o %D)" = "$NODES" ] ||
    { scontrol update "nodename=${NAME}[1-$NODES]" state=resume; false; }
}
wait_for all_idle
sinfo -p main -N -o '%N %T %c %m %G'
