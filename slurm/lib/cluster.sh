# shellcheck shell=bash
# Facts about the cluster and this job: cluster.env, modules, folders on the nodes' own disks, the address of rank 0.
# Sourced by launch.sh. What cannot work stops the job here with a message, before a GPU is touched.

# Fails where a variable that SLURM sets is missing: the script was not started by sbatch
need() {
  local name
  for name in "$@"; do
    if [ -z "${!name:-}" ]; then
      stop "$USER_MISTAKE" "$name is not set, as it is in a job of sbatch: start this with sbatch slurm/${0##*/} ... (docs/SCALING.md)"
    fi
  done
}

load_cluster() {
  need SLURM_JOB_ID SLURM_JOB_NODELIST SLURM_SUBMIT_DIR
  forget_what_srun_would_obey
  # A task of an array by both its numbers: the last task's own id is that of the whole array, which scontrol and
  # scancel would then act on
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
  job=${job:-$SLURM_JOB_ID}
  cd "$TGM_HOME" || stop "$USER_MISTAKE" "TGM_HOME=$TGM_HOME: no such folder on ${SLURMD_NODENAME:-the first node}"
  read_cluster_file
  : "${TGM_PYTHON:=python}" "${TGM_REQUEUE:=yes}" "${TGM_EXCLUDE_BAD_NODES:=no}" "${TGM_CHAIN:=$job}"
  case $TGM_REQUEUE in
    yes | chain | no) ;;
    *) stop "$USER_MISTAKE" "TGM_REQUEUE=$TGM_REQUEUE: wanted yes, chain or no" ;;
  esac
  load_modules
  # The checkout's code, also where the python has another copy installed, as an image has: a tool's own folder is
  # tools/, so that only this path leads it to the package beside it
  case :${PYTHONPATH:-}: in
    :"$TGM_HOME":*) ;;
    *) export PYTHONPATH=$TGM_HOME${PYTHONPATH:+:$PYTHONPATH} ;;
  esac
  make_scratch
  if [ -n "${TGM_NETWORK:-}" ]; then
    export NCCL_SOCKET_IFNAME=$TGM_NETWORK GLOO_SOCKET_IFNAME=$TGM_NETWORK
  fi
  find_address
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1
}

# Variables of the shell that sbatch was called in, or of its --export, that this job's sruns would take for options.
# Of an interactive srun's shell: its cores and memory, which are not this job's ("CPU binding outside of job step
# allocation"), and its --mem-per-cpu beside --mem ("mutually exclusive"). Of --export=NONE or a list: that tasks get
# nothing of what is exported here
forget_what_srun_would_obey() {
  unset SLURM_EXPORT_ENV "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}"
  if [ -n "${SLURM_MEM_PER_NODE:-}" ]; then
    unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU
  fi
}

# Under `set -eu`: an unset variable or a failing command in it ends the shell, which the trap then explains
read_cluster_file() {
  if [ -z "${TGM_CLUSTER:-}" ]; then
    TGM_CLUSTER=$TGM_HOME/slurm/cluster.env
    [ -f "$TGM_CLUSTER" ] || return 0
  elif [ ! -f "$TGM_CLUSTER" ]; then
    stop "$USER_MISTAKE" "TGM_CLUSTER=$TGM_CLUSTER: no such file on ${SLURMD_NODENAME:-the first node}"
  fi
  trap 'say "$TGM_CLUSTER could not be read to its end: the line above names the variable that is not set on the nodes" \
    "(set it in that file) or the command that failed"; exit "$USER_MISTAKE"' EXIT
  # shellcheck source=slurm/cluster.env.example
  source "$TGM_CLUSTER"
  trap - EXIT
}

load_modules() {
  local name errors code=0
  [ -n "${TGM_MODULES:-}" ] || return 0
  if ! type module >/dev/null 2>&1; then
    stop "$USER_MISTAKE" "TGM_MODULES=$TGM_MODULES: batch shells have no module command here; source the file that" \
      "defines it in $TGM_CLUSTER (often /etc/profile.d/modules.sh or lmod.sh)"
  fi
  errors=$(mktemp)
  for name in $TGM_MODULES; do
    set +u # the sites' function may use what is not set
    module load "$name" 2>"$errors" || code=$?
    set -u
    cat "$errors" >&2
    # Environment Modules before version 4 say so and end with 0
    if [ "$code" -ne 0 ] || grep -q ':ERROR:' "$errors"; then
      rm -f "$errors"
      stop "$USER_MISTAKE" "TGM_MODULES: 'module load $name' failed (exit code $code): set TGM_MODULES in" \
        "$TGM_CLUSTER to what 'module avail' shows on the nodes"
    fi
  done
  rm -f "$errors"
}

# A folder for what is compiled, on each node's own disk: this user's alone (of a name that anyone can guess, below a
# folder that all may write), and this chain's, so that it is there after a requeue on the same nodes
make_scratch() {
  local folder=${TGM_SCRATCH:-/tmp}
  scratch=$folder/tgm_scale-$(id -un)/$TGM_CHAIN
  # shellcheck disable=SC2016  # expanded on the nodes
  if ! on_every_node bash -c 'umask 077; [ -d "$2" ] && mkdir -p "$1" && [ -O "$1" ] && [ -O "${1%/*}" ]' \
    - "$scratch" "$folder"; then
    scratch=
    stop "$USER_MISTAKE" "TGM_SCRATCH=$folder: no folder of ours can be made there on the nodes that srun names above:" \
      "set it in $TGM_CLUSTER to one that all nodes have and you may write"
  fi
  if [ -n "${TGM_SCRATCH:-}" ]; then
    export TMPDIR=$TGM_SCRATCH
  fi
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton}
  export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}
  export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$scratch/extensions}
}

remove_scratch() {
  if [ -n "${scratch:-}" ]; then
    on_every_node rm -rf -- "$scratch" || say "left on the nodes: $scratch"
  fi
}

# One task a node, outside of the container, also while the step before still ends
on_every_node() {
  srun --overlap --nodes="${SLURM_JOB_NUM_NODES:-1}" --ntasks="${SLURM_JOB_NUM_NODES:-1}" --ntasks-per-node=1 --cpus-per-task=1 \
    "$@" </dev/null
}

# Node names need not resolve and containers have no scontrol: the first node's address, the same for all tasks
find_address() {
  local first='' address=''
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) || true
  if [ -n "$first" ]; then
    address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') || true
  fi
  if [ -z "$address" ]; then
    stop 1 "scontrol did not tell the address of the first node of $SLURM_JOB_NODELIST (its message is above): not started"
  fi
  export MASTER_ADDR=$address MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
}
