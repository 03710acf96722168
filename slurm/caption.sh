#!/bin/bash
# Captions shards or lists of clips, as an array of which each task makes some shards (`tgm-scale shards caption`).
#   sbatch slurm/caption.sh --shards /scratch/ssv2 --output /scratch/ssv2-captioned --blip2 /scratch/blip2-opt-2.7b
#   TGM_TASKS=64 sbatch --array=0-63 slurm/caption.sh ...              another number of tasks; keep it until all are done
#   sbatch --gpus-per-node=0 slurm/caption.sh --shards ... --output ... --classes label       from class names: no GPU
# Needs: for BLIP-2 one GPU per task (16 GB for OPT-2.7b in half precision, calculated); the model's folder; the clips.
# Costs: not measured on a cluster. Before its time limit a task is requeued, and resumes.
# Should reach: one shard in OUTPUT for each input shard; the last line counts the clips by outcome.
#SBATCH --job-name=caption
#SBATCH --array=0-7
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
share 8 tools/caption_clips.py "$@"
