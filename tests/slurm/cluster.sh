#!/usr/bin/env bash
# A real SLURM of two nodes on this machine, without systemd, for the tests of launching. Needs root and Debian's slurm-wlm.
#
#   tests/slurm/cluster.sh up DIR      starts it; everything it writes lies in DIR; then: export SLURM_CONF=DIR/slurm.conf
#   tests/slurm/cluster.sh down DIR    ends what `up` started
#
# Partitions: debug; preempt, whose jobs a job in debug drives out; gpu and batch, which launcher_configs/ names. Every node
# claims 64 cores and 8 GPUs, which are copies of /dev/null. SLURM_PORT chooses the controller's port (16817); the nodes listen on the next ones.
set -euo pipefail
action=${1:?up or down}
folder=$(realpath -m "${2:?a directory}")
port=${SLURM_PORT:-16817}
nodes=2 cpus=64 gpus=8
export SLURM_CONF=$folder/slurm.conf
# Another cluster on this machine has lines of its own.
hosts_mark="# slurm test cluster in $folder;"

# plugins: the directory of Debian's SLURM plugins.
plugins() { dirname "$(dpkg -L slurm-wlm-basic-plugins | grep '/auth_munge\.so$')"; }

write_configuration() {
  mkdir -p "$folder"/{log,run,state,munge,gpu}
  chmod 700 "$folder/munge"
  for gpu in $(seq 0 $((gpus - 1))); do
    [ -c "$folder/gpu/gpu$gpu" ] || mknod "$folder/gpu/gpu$gpu" c 1 3
  done
  echo "Name=gpu File=$folder/gpu/gpu[0-$((gpus - 1))]" >"$folder/gres.conf"
  : >"$folder/plugstack.conf"
  [ -s "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
  local host memory
  host=$(hostname -s)
  memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until the credentials of its last attempt have expired.
AuthInfo=socket=$folder/run/munge.socket,cred_expire=10
CredType=cred/munge
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
PluginDir=$(plugins)
PlugStackConfig=$folder/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=200000,sched_interval=2,bf_interval=2,batch_sched_delay=0
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=60
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/completed.txt
$(for node in $(seq "$nodes"); do
    echo "NodeName=node$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=$cpus Sockets=1" \
      "CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory Gres=gpu:$gpus State=UNKNOWN"
  done)
PartitionName=debug Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=preempt Nodes=ALL MaxTime=01:00:00 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=gpu Nodes=ALL MaxTime=1-00:00:00 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=batch Nodes=ALL MaxTime=1-00:00:00 State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
  local tries=$(($1 * 5))
  shift
  for _ in $(seq "$tries"); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  echo "error: gave up waiting for: $*" >&2
  tail -n 3 "$folder"/log/*.log >&2
  return 1
}

all_nodes_idle() { [ "$(sinfo -h -N -p debug -t idle -o %N | wc -l)" = "$nodes" ]; }

up() {
  write_configuration
  # The first node's name, which a job takes as MASTER_ADDR, must resolve.
  echo "127.0.0.1 $(seq -s ' ' -f 'node%g' "$nodes") $hosts_mark" >>/etc/hosts
  munged --force --key-file="$folder/munge/key" --socket="$folder/run/munge.socket" \
    --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" \
    --num-threads=2 2>>"$folder/log/munged.log"
  wait_for 10 munge -n -S "$folder/run/munge.socket"
  slurmctld -c
  wait_for 20 scontrol ping
  for node in $(seq "$nodes"); do
    mkdir -p "$folder/spool.node$node"
    slurmd -N "node$node"
  done
  wait_for 30 all_nodes_idle
}

down() {
  local file pid
  for file in "$folder"/run/{slurmd.*,slurmctld,munged}.pid; do
    [ -s "$file" ] || continue
    pid=$(<"$file")
    kill "$pid" 2>/dev/null || continue
    wait_for 30 gone "$pid"
  done
  # A bind-mounted hosts file can't be replaced, only rewritten.
  local others
  others=$(grep -vF "$hosts_mark" /etc/hosts || true)
  echo "$others" >/etc/hosts
}

gone() { ! kill -0 "$1"; }

case $action in
  up) up ;;
  down) down ;;
  *)
    echo "error: expected up or down, got $action" >&2
    exit 2
    ;;
esac
