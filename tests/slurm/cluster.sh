#!/bin/bash
# A SLURM cluster of three simulated nodes on this host: no systemd, cgroups or accounting, and no root needed.
# Each node has four GPUs of type a100 by name alone (their device files are /dev/null and its kin). Jobs of the
# partition `urgent` preempt those of `debug`, which SLURM requeues.
#   tests/slurm/cluster.sh start FOLDER [PORT]    then: export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm/cluster.sh stop FOLDER
# All state lies in FOLDER, the key of its own munge daemon too. Ports PORT to PORT+3 of 127.0.0.1 are used, and jobs are
# numbered from PORT.
# Needs: slurmctld, slurmd, slurm-client and munge (Debian's packages of these names, slurm-wlm 22.05).
set -euo pipefail

NODES=(node1 node2 node3)

start() {
  local folder=$1 port=$2
  mkdir -p "$folder"/{munge,control,log,spool}
  chmod 755 "$folder" "$folder/munge"
  write_configuration "$folder" "$port" >"$folder/slurm.conf"
  export SLURM_CONF=$folder/slurm.conf
  # sites let a prolog set each task's environment; a test writes one that spoils a node
  printf '#!/bin/bash\n' >"$folder/task_prolog.sh"
  chmod 755 "$folder/task_prolog.sh"

  printf 'Name=gpu Type=a100 File=/dev/%s\n' null zero full random >"$folder/gres.conf"

  (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
  munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
  slurmctld -c
  for node in "${NODES[@]}"; do
    slurmd -N "$node"
  done
  for _ in $(seq 100); do
    if [ "$(sinfo --noheader --Node --partition=debug --states=idle | wc -l)" -eq "${#NODES[@]}" ]; then
      return 0
    fi
    sleep 0.2
  done
  echo "the nodes did not come up within 20 s:" >&2
  tail -n 5 "$folder"/log/* >&2
  stop "$folder"
  return 1
}

write_configuration() {
  local folder=$1 port=$2
  cat <<CONFIGURATION
ClusterName=simulated
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
FirstJobId=$port
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
StateSaveLocation=$folder/control
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
TaskProlog=$folder/task_prolog.sh
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/builtin
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
Licenses=videos:100
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
NodeName=$(IFS=,; echo "${NODES[*]}") NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + ${#NODES[@]}))] CPUs=16 RealMemory=8000 Features=simulated Gres=gpu:a100:4
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
CONFIGURATION
}

stop() {
  local folder=$1 file pids=()
  export SLURM_CONF=$folder/slurm.conf
  scancel --quiet --user="$(id -un)" || true # daemons that stop leave the processes of their jobs alone
  for _ in $(seq 100); do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 0.2
  done
  for file in "$folder"/{node1.pid,node2.pid,node3.pid,slurmctld.pid,munge/pid}; do
    if [ -s "$file" ]; then
      pids+=("$(<"$file")")
    fi
  done
  [ "${#pids[@]}" -gt 0 ] || return 0
  kill "${pids[@]}" 2>/dev/null || true
  for _ in $(seq 100); do
    kill -0 "${pids[@]}" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "${pids[@]}" 2>/dev/null || true
}

case "${1:-}" in
  start) start "$(realpath -m "${2:?FOLDER}")" "${3:-16817}" ;;
  stop) stop "$(realpath -m "${2:?FOLDER}")" ;;
  *) sed -n '2,8s/^# //p' "$0" >&2 && exit 2 ;;
esac
