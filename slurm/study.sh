#!/bin/bash
# Pretrains and evaluates the arms of a study, as an array of which each task makes some of the runs (`tgm-scale study`).
#   sbatch slurm/study.sh configs/study/paper.yaml 'study.set=[data.shards=/scratch/k400/shards, train.epochs=200]'
#   TGM_TASKS=30 sbatch --array=0-29 slurm/study.sh configs/study/paper.yaml 'study.seeds=[0, 1, 2]'   a task a run
#   tgm-scale study --config configs/study/paper.yaml --tables           then, or at any time, with the same overrides
# Needs: nodes of study.processes GPUs; the shards and labelled videos that the study names; slurm/cluster.env.
# Costs: not measured on a cluster; the study's header has its plan. Before the time limit a task is requeued, and its
#   runs resume; what is done is skipped.
# Should reach: the last line `part I of N is done` in each task's log; then the tables.
#SBATCH --job-name=study
#SBATCH --array=0-9
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
export TGM_HOME=${TGM_HOME:-${SLURM_SUBMIT_DIR:-.}}
source "$TGM_HOME/slurm/launch.sh" || { echo "submit from the root of the repository, or export TGM_HOME" && exit 2; }
study 10 "$@"
