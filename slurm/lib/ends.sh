# shellcheck shell=bash
# How a job ends: permanently, or to be started again. Sourced by launch.sh.

# Ends this job permanently
stop() {
  local code=$1
  shift
  say "$*"
  if [ -n "$next_job" ]; then
    scancel "$next_job" || true
  fi
  remove_scratch
  exit "$code"
}

# Ends this job so that another start resumes the work, without the given nodes
start_again() {
  local code=$1 bad=$2
  stop_a_crash_loop "$code"
  case $TGM_REQUEUE in
    yes)
      say "requeued: resumes from $(progress_in_words)"
      trap '' TERM # the requeue ends this script too; the node must be excluded after it, when the job is pending
      scontrol requeue "$job" || exit "$code"
      exclude "$job" "$bad"
      ;;
    chain)
      exclude "$next_job" "$bad"
      say "job $next_job resumes from $(progress_in_words)"
      ;;
    no)
      say "not requeued, by TGM_REQUEUE=no: submit again to resume from $(progress_in_words)"
      remove_scratch
      ;;
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

# After a preflight that named nodes
leave_out() {
  local bad=$1
  note ended "$BAD_NODE"
  if [ "$TGM_EXCLUDE_BAD_NODES" != yes ]; then
    stop "$BAD_NODE" "bad nodes: $bad; submit again with --exclude=$bad, or set TGM_EXCLUDE_BAD_NODES=yes"
  fi
  start_again "$BAD_NODE" "$bad"
}

note_outside() {
  if [ -z "$outside" ]; then
    outside=yes
    note ended outside || true
  fi
}

# The signal that ends a job may reach its processes, and squeue here, before it reaches this script: ask SLURM
look_outside() {
  local state=''
  for _ in 1 2 3; do
    state=$(squeue --noheader --job "$job" --format=%T 2>/dev/null) || true
    if [ -n "$state$outside" ]; then
      break
    fi
    sleep 1 || true
  done
  case $state in
    "" | RUNNING) ;;
    *) note_outside ;;
  esac
}

# After the work, by its exit code
decide() {
  local what=$1 code=$2
  if [ "$code" -ne 0 ] && [ -z "$time_is_up" ]; then
    look_outside
  fi
  if [ -n "$outside" ]; then
    say "$what was ended from outside, at $(progress_in_words)"
    exit "$code"
  fi
  if [ -n "$time_is_up" ]; then
    code=$STOPPED
  fi
  note ended "$code"
  case $code in
    0)
      remove_scratch
      say "done: $folder"
      return
      ;;
    "$USER_MISTAKE" | "$DIVERGED")
      if [ -f "$logs/rank-0000.log" ]; then
        cat "$logs/rank-0000.log"
      fi
      stop "$code" "$what ended with exit code $code: not started again"
      ;;
  esac
  say "$what ended with exit code $code at $(progress_in_words)"
  if [ "$code" -eq "$WORKER_KILLED" ]; then
    say "a data worker was killed, usually because the node had no memory left: ask for more with --mem, or lower" \
      "data.workers"
    if [ "$(last_two_ends)" = "$WORKER_KILLED $WORKER_KILLED" ]; then
      stop "$code" "the second start in a row that ended in this way: not started again"
    fi
  fi
  start_again "$code" ""
}
