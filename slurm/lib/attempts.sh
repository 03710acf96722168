# shellcheck shell=bash
# The outcome of each start and the progress of the work, to detect starts that repeat the last ones without progress.
# Sourced by launch.sh. $kind is the kind of work, $folder its folder:
#   run     a run folder: its newest checkpoint's step, and the files of features or of test scores in it
#   shards  the shards of OUTPUT that belong to part $task of $tasks
#   trials  the trials of `tgm-scale tune`
#   study   the newest checkpoints, results and features of all its runs, of which part $task of $tasks makes a share
# One line per start and one per end, in $attempts:
#   CHAIN JOB.RESTART began PROGRESS TIME
#   CHAIN JOB.RESTART ended CODE TIME       `outside` where SLURM or a person ended it, not the work itself

# The step of the newest complete checkpoint of the run, or 0
newest_step() {
  local newest
  newest=$(find "$folder/checkpoints" -path '*/step-*/manifest.json' 2>/dev/null | sort | tail -n 1) || true
  newest=${newest%/manifest.json}
  newest=${newest##*/step-}
  echo $((10#${newest:-0}))
}

feature_files() { find "$folder/features" "$folder/test" -name '*.safetensors' 2>/dev/null | wc -l || true; }

# The steps of the newest checkpoints of a study's runs, summed, and one for each finished evaluation and each file of
# features or of test scores: it only grows
study_files() {
  find "$folder" \( -path '*/step-*/manifest.json' -o -name results.json -o -path '*/features/*.safetensors' \
    -o -path '*/test/*.safetensors' \) 2>/dev/null | awk -F/ '
    $NF != "manifest.json" { count++; next }
    { step = $(NF - 1); run = $0; sub(/\/step-[^\/]*\/manifest.json$/, "", run); sub(/^step-/, "", step)
      if (step + 0 > newest[run]) newest[run] = step + 0 }
    END { for (run in newest) count += newest[run]; print count + 0 }' || true
}

# Each task of a tool makes every $tasks-th shard, and writes NNNNN.tar or NNNNN.report.json when one is done
own_shards() {
  find "$folder" -maxdepth 1 -name '[0-9]*' 2>/dev/null | awk -v task="$task" -v tasks="$tasks" -F/ '
    $NF ~ /^[0-9]+[.](tar|report[.]json)$/ && $NF % tasks == task { done[$NF + 0] }
    END { for (shard in done) count++; print count + 0 }' || true
}

# One word
progress() {
  case $kind in
    run) echo "$(newest_step)+$(feature_files)" ;;
    shards) own_shards ;;
    trials) cat "$folder/outcomes.jsonl" 2>/dev/null | wc -l || true ;;
    study) study_files ;;
  esac
}

progress_in_words() {
  local files
  case $kind in
    run)
      files=$(feature_files)
      echo "step $(newest_step)$([ "$files" -eq 0 ] || echo " and $files files of features")"
      ;;
    shards) echo "$(own_shards) finished shards of part $task" ;;
    trials) echo "$(progress) finished trials" ;;
    study) echo "part $task, at $(study_files) steps and results" ;;
  esac
}

# Without another process: a signal to the whole job would end `date` and leave the line without its time
note() { printf '%s %s %s %s %(%FT%T)T\n' "$TGM_CHAIN" "$job.${SLURM_RESTART_COUNT:-0}" "$1" "$2" -1 >>"$attempts"; }

# Starts of this chain that began at the current progress and ended by themselves, or together with their node. A job
# submitted by hand counts from one again.
starts_here() {
  awk -v chain="$TGM_CHAIN" -v here="$(progress)" '
    $1 == chain && $3 == "began" && $4 == here { start[$2] }
    $1 == chain && $3 == "ended" && $4 == "outside" { delete start[$2] }
    END { for (one in start) count++; print count + 0 }' "$attempts"
}

# The exit codes of this chain's last two starts
last_two_ends() { awk -v chain="$TGM_CHAIN" '$1 == chain && $3 == "ended" { a = b; b = $4 } END { print a, b }' "$attempts"; }

refuse_a_second_job() {
  local last
  last=$(tail -n 1 "$attempts" | cut -d ' ' -f 2)
  last=${last%.*}
  if [ -n "$last" ] && [ "$last" != "$job" ] &&
    [ -n "$(squeue --noheader --states=RUNNING --job "$last" 2>/dev/null)" ]; then
    stop "$USER_MISTAKE" "$folder: job $last is at work there; give this job another folder"
  fi
}

stop_a_crash_loop() {
  if [ "$(starts_here)" -ge "$SAME_PROGRESS_STARTS" ]; then
    stop "$1" "$SAME_PROGRESS_STARTS starts began at $(progress_in_words) and got no further: a crash loop (or a time" \
      "limit too short for any progress), not started again; look at ${logs:-the messages above}"
  fi
}
