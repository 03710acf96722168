# shellcheck shell=bash
# Steps that a command asks for, one at a time and each on all nodes of the job: `tgm-scale tune` is a step itself, and
# a container has no srun. Sourced by launch.sh. The other side is tgm_scale/tuning/steps.py. In $folder/steps are
#   wanted   a folder, a limit, and the words of a command, each ended by a NUL
#   stop     the step is to end, at once
#   ended    it has ended
# Each task writes its exit code to a file with its rank's number in that folder, where the step's output.log is, too.

readonly STEP_NAME=trial

# What each task runs. The limit is of private memory, in KiB, as RLIMIT_DATA has it; or `unlimited`
# shellcheck disable=SC2016  # expanded in the task
readonly TASK='where=$1 code=0; ulimit -d "$2"; shift 2; "$@" || code=$?; echo "$code" >"$where/code-$SLURM_PROCID"'

serve_steps() {
  local steps=$folder/steps running='' over=''
  trap 'over=yes' TERM
  while [ -z "$over" ]; do
    sleep 0.5 || true # which gets a signal, too
    if [ -n "$running" ] && ! kill -0 "$running" 2>/dev/null; then
      wait "$running" || true
      running=
      touch "$steps/ended"
    elif [ -n "$running" ] && [ -e "$steps/stop" ]; then
      kill_step "$running"
    elif [ -z "$running" ] && [ -e "$steps/wanted" ]; then
      start_step
    fi
  done
  for _ in {1..60}; do # where the command was killed amid a step
    if [ -z "$running" ] || ! kill -0 "$running" 2>/dev/null; then
      return 0
    fi
    kill_step "$running"
    sleep 1 || true
  done
}

# Sets $running
start_step() {
  local words=() where
  mapfile -d '' words <"$steps/wanted"
  rm "$steps/wanted"
  where=${words[0]}
  srun --job-name="$STEP_NAME" --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_NTASKS" --kill-on-bad-exit=0 \
    --wait=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" ${TGM_SRUN_OPTIONS[@]+"${TGM_SRUN_OPTIONS[@]}"} \
    bash -c "$TASK" - "$where" "${words[1]}" ${TGM_CONTAINER[@]+"${TGM_CONTAINER[@]}"} "$TGM_PYTHON" "${words[@]:2}" \
    >>"$where/output.log" 2>&1 </dev/null &
  running=$!
}

# SIGKILL to all that it started, on every node; and SIGTERM to its srun, which may still wait for nodes
kill_step() {
  local number
  for number in $(squeue --noheader --steps --job "$SLURM_JOB_ID" --format='%j %i' | sed -n "s/^$STEP_NAME //p"); do
    scancel --signal=KILL "$number" 2>/dev/null || true # which is over
  done
  kill "$1" 2>/dev/null || true
}
