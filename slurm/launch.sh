# shellcheck shell=bash
# The launcher behind the scripts of this folder: they source it and call
#   launch COMMAND CONFIG [section.key=value ...]     `tgm-scale COMMAND` on all GPUs of the job, requeued until done
#   in_tasks SRUN_OPTION... -- PYTHON_ARGUMENT...     one step of the job, by the site's python
# Facts about the cluster come from cluster.env beside it (see cluster.env.example), or the file that TGM_CLUSTER is.
#
# A run ends in one of five ways, by the exit code of its processes:
#   0   all steps are made
#   2   the user's mistake: not started again
#   4   it diverged, and would again: not started again
#   85  stopped by a signal (time limit, preemption) after a checkpoint: started again from there
#   else  a crash: started again, unless three starts in a row began at the same step
# Bash, since it must decide these things when Python does not start.

set -u -o pipefail

readonly USER_MISTAKE=2 BAD_NODE=3 DIVERGED=4 SAME_STEP_STARTS=3

say() { echo "[$(date +%FT%T)] $*"; }

load_cluster() {
  cd "$TGM_HOME" || return
  TGM_CLUSTER=${TGM_CLUSTER:-$TGM_HOME/slurm/cluster.env}
  if [ -f "$TGM_CLUSTER" ]; then
    # shellcheck source=slurm/cluster.env.example
    source "$TGM_CLUSTER"
  fi
  : "${TGM_PYTHON:=python}" "${TGM_REQUEUE:=yes}" "${TGM_EXCLUDE_BAD_NODES:=no}" "${TGM_CHAIN:=$SLURM_JOB_ID}"
  if [ -n "${TGM_MODULES:-}" ]; then
    # shellcheck disable=SC2086  # several modules, by spaces
    module load $TGM_MODULES
  fi
  if [ -n "${TGM_SCRATCH:-}" ]; then
    export TMPDIR=$TGM_SCRATCH TRITON_CACHE_DIR=$TGM_SCRATCH/triton TORCHINDUCTOR_CACHE_DIR=$TGM_SCRATCH/inductor
  fi
  if [ -n "${TGM_NETWORK:-}" ]; then
    export NCCL_SOCKET_IFNAME=$TGM_NETWORK GLOO_SOCKET_IFNAME=$TGM_NETWORK
  fi
  # Node names need not resolve and containers have no scontrol: the first node's address, the same for all tasks
  local first
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_ADDR=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
  export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1
}

# The first task to end starts the clock of --wait; then the others are killed. (--kill-on-bad-exit=1 would kill at
# once those that are still leaving after a common checkpoint, and srun would report 143 for their 85.)
in_tasks() {
  local options=()
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  srun --kill-on-bad-exit=0 --wait=30 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${options[@]}" \
    ${TGM_SRUN_OPTIONS[@]+"${TGM_SRUN_OPTIONS[@]}"} ${TGM_CONTAINER[@]+"${TGM_CONTAINER[@]}"} "$TGM_PYTHON" "$@"
}

# The step of the newest whole checkpoint of the run; 0 where there is none
newest_step() {
  local newest
  newest=$(find "$run/checkpoints" -path '*/step-*/manifest.json' 2>/dev/null | sort | tail -n 1)
  newest=${newest%/manifest.json}
  newest=${newest##*/step-}
  echo $((10#${newest:-0}))
}

# RUN/attempts has a line a start, with the step it began at; a job submitted by hand counts from one again
note_attempt() {
  echo "$TGM_CHAIN $(newest_step) $SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} $(date +%FT%T)" >>"$run/attempts"
}
attempts_here() { grep -c "^$TGM_CHAIN $(newest_step) " "$run/attempts"; }

refuse_a_second_job() {
  local last
  last=$(tail -n 1 "$run/attempts" | cut -d ' ' -f 3)
  last=${last%.*}
  if [ -z "$last" ] || [ "$last" = "$SLURM_JOB_ID" ]; then
    return
  fi
  if [ -n "$(squeue --noheader --states=RUNNING --job "$last" 2>/dev/null)" ]; then
    stop "$USER_MISTAKE" "run.dir=$run: job $last is at work on this run; give this job another run.dir"
  fi
}

# Ends this job for good
stop() {
  local code=$1
  shift
  say "$*"
  if [ -n "${next_job:-}" ]; then
    scancel "$next_job"
  fi
  exit "$code"
}

stop_a_crash_loop() {
  if [ "$(attempts_here)" -ge "$SAME_STEP_STARTS" ]; then
    stop "$1" "$SAME_STEP_STARTS starts began at step $(newest_step) and made no new checkpoint: a crash loop, not" \
      "started again; look at $run/logs"
  fi
}

# Ends this job so that the run starts again from its newest checkpoint, without the nodes named
start_again() {
  local code=$1 bad=$2
  stop_a_crash_loop "$code"
  case $TGM_REQUEUE in
    yes)
      say "requeued: goes on from step $(newest_step)"
      trap '' TERM # the requeue ends this script too; the node must be excluded after it, when the job is pending
      scontrol requeue "$SLURM_JOB_ID" || exit "$code"
      exclude "$SLURM_JOB_ID" "$bad"
      ;;
    chain)
      exclude "$next_job" "$bad"
      say "job $next_job goes on from step $(newest_step)"
      ;;
    *) say "not requeued, by TGM_REQUEUE=$TGM_REQUEUE: submit again to go on from step $(newest_step)" ;;
  esac
  exit "$code"
}

exclude() {
  local job=$1 bad=$2 before
  if [ -n "$bad" ]; then
    before=$(scontrol show job "$job" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p' | sed 's/(null)//')
    scontrol update JobId="$job" ExcNodeList="${before:+$before,}$bad" && say "excluded from now on: $bad"
  fi
}

# For sites that forbid requeue: the next job of the chain waits for this one to fail, and is dropped if it does not
submit_next() {
  local log
  scontrol update JobId="$SLURM_JOB_ID" Requeue=0 # nor by SLURM itself after a node failure: the next job takes over
  log=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *StdOut=//p')
  next_job=$(sbatch --parsable --dependency="afternotok:$SLURM_JOB_ID" --kill-on-invalid-dep=yes \
    --export=ALL,TGM_CHAIN="$TGM_CHAIN" --chdir="$SLURM_SUBMIT_DIR" --output="$log" --job-name="$SLURM_JOB_NAME" \
    --partition="$SLURM_JOB_PARTITION" --time="$(squeue --noheader --job "$SLURM_JOB_ID" --format=%l)" \
    ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"} \
    --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node="$SLURM_NTASKS_PER_NODE" \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" --gpus-per-node="${SLURM_GPUS_PER_NODE:-0}" "$0" "$@") ||
    stop "$USER_MISTAKE" "TGM_REQUEUE=chain needs sbatch on the nodes: set it to no and submit several jobs with" \
      "--dependency=singleton, of which each goes on from the last"
  say "job $next_job goes on if this one ends before the run does; scancel both to end it"
}

# After a preflight that named nodes
leave_out() {
  local bad=$1
  if [ "$TGM_EXCLUDE_BAD_NODES" != yes ]; then
    stop "$BAD_NODE" "bad nodes: $bad; submit again with --exclude=$bad, or set TGM_EXCLUDE_BAD_NODES=yes"
  fi
  start_again "$BAD_NODE" "$bad"
}

launch() {
  local command=$1 config=$2 code=0
  shift 2
  load_cluster || exit
  say "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST, $SLURM_NTASKS processes"

  run=$(in_tasks --nodes=1 --ntasks=1 --ntasks-per-node=1 -- \
    -m tgm_scale config --config "$config" --key run.dir "$@") || code=$?
  if [ "$code" -ne 0 ]; then
    stop "$code" "the configuration was not read (exit code $code, on ${SLURMD_NODENAME:-the first node}): not started"
  fi
  logs=$run/logs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
  if ! { mkdir -p "$logs" && touch "$run/attempts"; }; then
    stop "$USER_MISTAKE" "run.dir=$run cannot be written"
  fi
  refuse_a_second_job
  if [ "$TGM_REQUEUE" = chain ]; then
    submit_next "$@"
  fi
  stop_a_crash_loop 1 # of starts that ended together with their node, where nothing below had its say
  note_attempt

  if [ "$command" = pretrain ]; then # it checks what a pretraining run needs
    in_tasks --wait=0 -- -m tgm_scale preflight --config "$config" "$@" 2>&1 | tee "$logs/preflight.log"
    code=${PIPESTATUS[0]}
    case $code in
      0) ;;
      "$BAD_NODE") leave_out "$(sed -n 's/^bad node \([^:]*\):.*/\1/p' "$logs/preflight.log" | sort -u | paste -sd,)" ;;
      "$USER_MISTAKE") stop "$code" "preflight failed on every node: not started" ;;
      *) say "preflight ended with exit code $code" && start_again "$code" "" ;;
    esac
  fi

  say "$command begins at step $(newest_step); one log a rank: $logs"
  in_tasks --output="$logs/rank-%4t.log" --open-mode=append -- \
    -m tgm_scale "$command" --config "$config" "$@" || code=$?
  case $code in
    0) say "done: $run" ;;
    "$USER_MISTAKE" | "$DIVERGED")
      cat "$logs/rank-0000.log"
      stop "$code" "not started again"
      ;;
    *)
      say "$command ended with exit code $code at a checkpoint of step $(newest_step)"
      start_again "$code" ""
      ;;
  esac
}
