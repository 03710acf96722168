#!/bin/bash
# Finds the fastest ZeRO stage, offload, micro batch and checkpointing that fits the nodes of this job, 1 node of 8 GPUs
# where nothing is said (`tgm-scale tune`). Each trial is a step on all of them.
#   sbatch slurm/tune.sh --config configs/pretrain_vitl.yaml --dir runs/tune-vitl data.shards=/scratch/shards
#   sbatch --nodes=4 slurm/tune.sh --config configs/pretrain_vitl.yaml --dir runs/tune-vitl-4 data.shards=...
#   sbatch --ntasks-per-node=4 --gpus-per-node=4 slurm/tune.sh --config configs/pretrain_vitb.yaml --dir runs/tune ...
# Needs: as many nodes as the run will have; its shards, and with text guidance its model folder; slurm/cluster.env;
#   a DIR that all nodes share.
# Costs: not measured on a cluster; a minute or two per candidate, 30 minutes in all (--minutes). Before the time limit
#   the job is requeued, and finished trials are not repeated.
# Should reach: the last line, the winner's command; DIR/best.json and DIR/best.overrides.
#SBATCH --job-name=tune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=1:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
export TGM_HOME=${TGM_HOME:-${SLURM_SUBMIT_DIR:-.}}
source "$TGM_HOME/slurm/launch.sh" || { echo "submit from the root of the repository, or export TGM_HOME" && exit 2; }
trials tools/tune_deepspeed.py "$@"
