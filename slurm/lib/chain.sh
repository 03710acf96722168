# shellcheck shell=bash
# TGM_REQUEUE=chain, for sites that forbid requeue: the next job waits for this one to fail, and is dropped if it does
# not. It is this one again: what sbatch was given on its command line is read back from `scontrol show job`.
# Sourced by launch.sh.

# name in `scontrol show job` = option of sbatch
readonly SAME=(
  Account=account QOS=qos Partition=partition Reservation=reservation TimeLimit=time TimeMin=time-min Deadline=deadline
  Nice=nice Features=constraint ReqNodeList=nodelist ExcNodeList=exclude Licenses=licenses Network=network
  Switches=switches MinMemoryNode=mem MinMemoryCPU=mem-per-cpu MinTmpDiskNode=tmp MailUser=mail-user
  MailType=mail-type WCKey=wckey
)

# A value of one word; nothing where it is not set
fact() {
  awk -v key="$1=" '
    { for (i = 1; i <= NF; i++) if (index($i, key) == 1 && !found++) value = substr($i, length(key) + 1) }
    END { if (value !~ /^(\(null\)|N\/A|None|\*)?$/) print value }' <<<"$facts"
}

# A value to the end of its line
line() { sed -n "s/^ *$1=\(.*[^ ]\) *$/\1/p" <<<"$described"; }

# `gres:gpu:a100:4,gres:nvme:1`, which newer versions write `gres/gpu:a100:4,...`, as one line an item
items() { fact "$1" | tr , '\n' | sed 's/^gres[:/]//' || true; }

# The GPUs of a fact, as --gpus-per-node and its kin take them. --gres=gpu:a100:4 beside --gpus-per-node=0 leaves a
# gpu:0 that says nothing
gpus() { items "$1" | sed -n -e '/^gpu[:=]0$/d' -e 's/^gpu$/1/p' -e 's/^gpu[:=]//p' | paste -sd, || true; }

# Sets $described, $facts and $options: how sbatch submits this job once more
same_options() {
  local pair name value
  described=$(scontrol show job "$job") || stop 1 "scontrol does not know of this job: no next job of the chain"
  # what people wrote is no fact
  facts=$(sed -e '1s/JobName=.*//' -e '/^ *\(Admin\|System\)\{0,1\}Comment=/d' \
    -e '/^ *\(Command\|WorkDir\|StdErr\|StdIn\|StdOut\)=/d' <<<"$described")
  options=(--nodes="${SLURM_JOB_NUM_NODES:-1}")
  for pair in "${SAME[@]}"; do
    value=$(fact "${pair%=*}")
    if [ -n "$value" ]; then
      options+=("--${pair#*=}=$value")
    fi
  done
  for name in NTASKS NTASKS_PER_NODE CPUS_PER_TASK; do
    value=SLURM_$name
    if [ -n "${!value:-}" ]; then
      name=${name//_/-}
      options+=("--${name,,}=${!value}")
    fi
  done
  gpu_options
  case $(fact OverSubscribe) in
    NO) options+=(--exclusive) ;;
    USER) options+=(--exclusive=user) ;;
  esac
  if [ "$(fact Contiguous)" = 1 ]; then
    options+=(--contiguous)
  fi
  if [ -n "$(line Comment)" ]; then
    options+=(--comment="$(line Comment)")
  fi
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    options+=(--array="$SLURM_ARRAY_TASK_ID")
  fi
  options+=(--job-name="${SLURM_JOB_NAME:-${0##*/}}" --chdir="$SLURM_SUBMIT_DIR" --output="$(line StdOut)")
  if [ "$(line StdErr)" != "$(line StdOut)" ]; then
    options+=(--error="$(line StdErr)")
  fi
}

# The script's own --gpus-per-node, if it has one, must be overridden where this job had none, and by the same option
# where it had others: sbatch adds --gres to it, and refuses the sum
gpu_options() {
  local each name value
  each=$(gpus TresPerNode)
  if [ -n "$each" ] || grep -q '^#SBATCH --gpus-per-node' "$0"; then
    options+=(--gpus-per-node="${each:-0}")
  fi
  value=$(items TresPerNode | sed '/^gpu\([:=]\|$\)/d' | paste -sd,) || true
  if [ -n "$value" ]; then
    options+=(--gres="$value")
  fi
  for name in TresPerJob=gpus TresPerTask=gpus-per-task TresPerSocket=gpus-per-socket CpusPerTres=cpus-per-gpu \
    MemPerTres=mem-per-gpu; do
    value=$(gpus "${name%=*}")
    if [ -n "$value" ]; then
      options+=("--${name#*=}=$value")
    fi
  done
}

submit_next() {
  local said options=()
  same_options
  # nor by SLURM itself after a node failure: the next job takes over
  scontrol update JobId="$job" Requeue=0 || say "SLURM may still requeue this job by itself"
  said=$(sbatch --parsable --dependency="afternotok:$job" --kill-on-invalid-dep=yes \
    --export=ALL,TGM_CHAIN="$TGM_CHAIN" "${options[@]}" "$0" "${SCRIPT_ARGUMENTS[@]}") ||
    stop "$USER_MISTAKE" "sbatch refused the next job of the chain: its message is above, its options were" \
      "${options[*]}. Where nodes may not submit, set TGM_REQUEUE=no and submit several jobs with" \
      "--dependency=singleton, of which each resumes from the last"
  next_job=$(sed -n 's/^\([0-9][0-9]*\)\(;.*\)\{0,1\}$/\1/p' <<<"$said" | tail -n 1)
  say "job $next_job continues the run if this job ends first; scancel both to end it"
}
