#!/bin/bash
# Packs InternVid's rows and videos into shards, as an array of which each task makes some (`tgm-scale shards make`).
#   sbatch slurm/make_shards.sh --annotations internvid.jsonl --videos /scratch/videos --output /scratch/shards
#   sbatch --array=3,7 slurm/make_shards.sh ...                       only tasks 3 and 7, for instance to repeat them
#   TGM_TASKS=8 sbatch --array=0-7 slurm/make_shards.sh ...           another number of tasks; keep it until all are done
# Needs: CPUs, no GPU (--partition=NAME if they have a partition of their own); the videos; about 0.4 GB of disk per
#   thousand clips.
# Costs: not measured on a cluster. Before its time limit a task is requeued, and resumes.
# Should reach: the last line `N of N shards finished`, and OUTPUT/report.json, which names what was left out and why.
#SBATCH --job-name=make_shards
#SBATCH --array=0-63
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
export TGM_HOME=${TGM_HOME:-${SLURM_SUBMIT_DIR:-.}}
source "$TGM_HOME/slurm/launch.sh" || { echo "submit from the root of the repository, or export TGM_HOME" && exit 2; }
share 64 tools/make_shards.py --workers "${SLURM_CPUS_PER_TASK:-1}" "$@"
