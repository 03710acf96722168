#!/bin/bash
# Adds relevance maps to shards, as an array of which each task makes some shards (`tgm-scale shards cache`).
#   sbatch slurm/cache_relevance.sh --shards /scratch/shards --towers /scratch/clip-vit-base-patch32 --output /scratch/maps
#   TGM_TASKS=64 sbatch --array=0-63 slurm/cache_relevance.sh ...      another number of tasks; keep it until all are done
# Needs: one GPU per task; the shards; the folder of a CLIP or SigLIP model; space for a copy of the shards.
# Costs: not measured on a cluster. Before its time limit a task is requeued, and resumes.
# Should reach: the last line `N of N shards finished`: one shard in OUTPUT for each input shard, to be used as data.shards.
#SBATCH --job-name=cache_relevance
#SBATCH --array=0-15
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
export TGM_HOME=${TGM_HOME:-${SLURM_SUBMIT_DIR:-.}}
source "$TGM_HOME/slurm/launch.sh" || { echo "submit from the root of the repository, or export TGM_HOME" && exit 2; }
share 16 tools/cache_relevance.py "$@"
