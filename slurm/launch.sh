# shellcheck shell=bash
# The launcher behind the scripts of this folder: they source it and call one of
#   launch COMMAND CONFIG [section.key=value ...]     `tgm-scale COMMAND` on all GPUs of the job
#   share PARTS TOOL --option=value ...               one array task's shards of a tool that writes to --output
#   trials TOOL --option=value ...                    a tool whose trials are steps on all nodes of the job
#   study PARTS CONFIG [section.key=value ...]        one array task's runs of a study, on its single node
# Settings of the cluster are in cluster.env in the same folder (see cluster.env.example), or in the file TGM_CLUSTER.
#
# Exit codes of the processes, and what follows:
#   0   the work is complete
#   2   a user's mistake, or a run folder in use by another start: not started again
#   4   training diverged, or nothing fits, and a new start would give the same: not started again
#   85  stopped by a signal (time limit, preemption) after a checkpoint: started again, and resumes
#   87  a data worker was killed, usually for lack of memory: started again, not twice in a row
#   else  a crash (86: a process hung): started again, unless three starts in a row made no progress
# It is written in Bash because it must work when Python does not start.

set -Eeuo pipefail
trap 'say "launch.sh: ${BASH_SOURCE[0]##*/} line $LINENO ended with exit code $?"' ERR

readonly USER_MISTAKE=2 BAD_NODE=3 DIVERGED=4 STOPPED=85 WORKER_KILLED=87 SAME_PROGRESS_STARTS=3
SCRIPT_ARGUMENTS=("$@") # of the script that sources this file
step='' outside='' time_is_up='' interrupted='' ends_by_itself='' next_job='' logs='' task=''

say() { printf '[%(%FT%T)T] %s\n' -1 "$*"; }

# shellcheck source=slurm/lib/cluster.sh
source "$TGM_HOME/slurm/lib/cluster.sh"
# shellcheck source=slurm/lib/attempts.sh
source "$TGM_HOME/slurm/lib/attempts.sh"
# shellcheck source=slurm/lib/chain.sh
source "$TGM_HOME/slurm/lib/chain.sh"
# shellcheck source=slurm/lib/ends.sh
source "$TGM_HOME/slurm/lib/ends.sh"
# shellcheck source=slurm/lib/steps.sh
source "$TGM_HOME/slurm/lib/steps.sh"

# One step of the job, by the site's python: in_tasks SRUN_OPTION... -- PYTHON_ARGUMENT...
# --wait counts from the end of the first task; then the others are killed. (--kill-on-bad-exit=1 would at once kill
# tasks that are still exiting after a common checkpoint, and srun would report 143 instead of their 85.)
# srun runs in the background, because a trap runs while the shell waits, not while it runs a command.
in_tasks() {
  local options=() code=0 again=0
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  if [ -n "$outside$time_is_up" ]; then # a signal came between two steps
    return "$STOPPED"
  fi
  srun --kill-on-bad-exit=0 --wait=30 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" ${options[@]+"${options[@]}"} \
    ${TGM_SRUN_OPTIONS[@]+"${TGM_SRUN_OPTIONS[@]}"} ${TGM_CONTAINER[@]+"${TGM_CONTAINER[@]}"} "$TGM_PYTHON" "$@" &
  step=$!
  wait "$step" || code=$?
  while [ -n "$interrupted" ]; do
    interrupted=
    again=0
    wait "$step" 2>/dev/null || again=$?
    if [ "$again" -ne 127 ]; then # which it is when the step had been waited for
      code=$again
    fi
  done
  return "$code"
}

# SIGTERM: the job is preempted, requeued or cancelled, or its time is up. SIGHUP: the terminal of an allocation was
# closed; srun and the processes receive the signal, too
on_term() {
  interrupted=yes
  note_outside
}

# SIGUSR1 to this script alone (--signal=B:USR1@...): the time limit is near. Processes that save checkpoints get a
# signal of their own; the others can be stopped at any moment
on_usr1() {
  interrupted=yes
  if [ -n "$ends_by_itself" ]; then
    time_is_up=yes
    kill -TERM "$step" || true
  fi
}

# The first node's answer to `tgm-scale config --key`, without the banners that an image or a site prints on stdout
answer() {
  local key=$1
  shift
  in_tasks --nodes=1 --ntasks=1 --ntasks-per-node=1 -- -m tgm_scale config --config "$config" --key "$key" --marked "$@" |
    sed -n "s/^.*tgm-scale: $key=//p" | tail -n 1
}

# Sets $folder
ask_folder() {
  local code=0
  folder=$(answer run.dir "$@") || code=$?
  if [ "$code" -ne 0 ] || [ -z "$folder" ]; then
    stop "$((code ? code : 1))" "the configuration was not read (exit code $code, on ${SLURMD_NODENAME:-the first node}): not started"
  fi
}

# Before the work: check for another job on the folder and for a crash loop, and submit the next job of a chain
begin() {
  if ! { mkdir -p "$folder" "${logs:-$folder}" && touch "$attempts"; }; then
    stop "$USER_MISTAKE" "$folder cannot be written"
  fi
  refuse_a_second_job
  stop_a_crash_loop 1 # of starts that ended together with their node, so that nothing below ran
  if [ "$TGM_REQUEUE" = chain ]; then
    submit_next
  fi
  note began "$(progress)"
  trap on_term TERM HUP
  trap on_usr1 USR1
}

# The preflight of a pretraining or finetuning run. A bad node ends the job, or is excluded from the next start
check_nodes() {
  local code=0
  in_tasks --wait=0 -- -m tgm_scale preflight --config "$config" "$@" >"$logs/preflight.log" 2>&1 || code=$?
  cat "$logs/preflight.log"
  case $outside$code in
    0) ;;
    "$BAD_NODE") leave_out "$(sed -n 's/^bad node \([^:]*\):.*/\1/p' "$logs/preflight.log" | sort -u | paste -sd,)" ;;
    *) decide preflight "$code" ;;
  esac
}

launch() {
  local command=$1 config=${2:-} code=0
  if [ -z "$config" ]; then
    stop "$USER_MISTAKE" "no configuration is named: sbatch slurm/NAME.sh configs/....yaml [section.key=value ...]"
  fi
  shift 2
  load_cluster
  say "job $job, start ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST, ${SLURM_NTASKS:-?} processes"

  ask_folder "$@"
  kind=run attempts=$folder/attempts logs=$folder/logs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
  case $command in
    pretrain | finetune) ;; # they receive the signal of #SBATCH --signal, and save a checkpoint
    *) ends_by_itself=yes ;;
  esac
  begin

  if [ -z "$ends_by_itself" ]; then
    check_nodes "$@"
  fi

  say "$command begins at $(progress_in_words); one log per rank: $logs"
  in_tasks --output="$logs/rank-%4t.log" --open-mode=append -- \
    -m tgm_scale "$command" --config "$config" "$@" || code=$?
  decide "$command" "$code"
}

# The value of an option among a tool's arguments
value_of() {
  local option=$1
  shift
  while [ "$#" -gt 0 ]; do
    case $1 in
      "$option="*) echo "${1#*=}" ;;
      "$option") echo "${2:-}" ;;
    esac
    shift
  done
}

# A tool that can be stopped at any moment and resumes; `named` is the option with its folder. Where it asks for steps,
# it is one process beside them
tool() {
  local named=$1 code=0 options=() server=
  shift
  say "job $job, start ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST"
  folder=$(value_of "$named" "$@" | tail -n 1)
  if [ -z "$folder" ]; then
    stop "$USER_MISTAKE" "${1##*/} wants $named FOLDER, in full, among the arguments of the script"
  fi
  attempts=$folder/attempts${task:+-$task} ends_by_itself=yes
  begin
  if [ "$kind" = trials ]; then
    rm -rf "$folder/steps" && mkdir "$folder/steps"
    serve_steps &
    server=$!
    options=(--overlap --relative=0 --nodes=1 --ntasks=1 --ntasks-per-node=1)
  fi
  in_tasks ${options[@]+"${options[@]}"} -- "$@" || code=$?
  if [ -n "$server" ]; then
    kill "$server" || true
    wait "$server" || true
  fi
  decide "$1" "$code"
}

refuse_other_parts() {
  if [ "${SLURM_ARRAY_TASK_MAX:-0}" -ge "$tasks" ]; then
    stop "$USER_MISTAKE" "--array has part $SLURM_ARRAY_TASK_MAX of the parts 0 to $((tasks - 1)): set TGM_TASKS to the" \
      "number of parts"
  fi
  if [ "${SLURM_ARRAY_TASK_COUNT:-$tasks}" -lt "$tasks" ]; then
    say "this array makes $SLURM_ARRAY_TASK_COUNT of $tasks parts; TGM_TASKS is the number of parts"
  fi
}

share() {
  load_cluster
  need SLURM_ARRAY_TASK_ID
  kind=shards task=$SLURM_ARRAY_TASK_ID tasks=${TGM_TASKS:-$1}
  shift
  refuse_other_parts
  tool --output "$@" --task "$task" --tasks "$tasks"
}

# Its commands resume by themselves, and a task's part of the runs is the same at every start
study() {
  local parts=$1 config=${2:-} code=0
  if [ -z "$config" ]; then
    stop "$USER_MISTAKE" "no study is named: sbatch slurm/study.sh configs/study/....yaml [section.key=value ...]"
  fi
  shift 2
  load_cluster
  need SLURM_ARRAY_TASK_ID
  kind=study task=$SLURM_ARRAY_TASK_ID tasks=${TGM_TASKS:-$parts} ends_by_itself=yes
  refuse_other_parts
  say "job $job, start ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST"
  ask_folder "$@"
  attempts=$folder/attempts-$task
  begin
  in_tasks -- -m tgm_scale study --config "$config" --task "$task" --tasks "$tasks" "$@" || code=$?
  if [ "$code" -eq 1 ] && [ -z "$outside$time_is_up" ]; then # it went on with the others
    note ended "$code"
    stop "$code" "commands of the study failed, named above: submit again to begin them again"
  fi
  decide study "$code"
}

trials() {
  load_cluster
  need SLURM_JOB_NUM_NODES SLURM_NTASKS
  kind=trials
  tool --dir "$@" --nodes "$SLURM_JOB_NUM_NODES" --processes "$SLURM_NTASKS"
}
