#!/bin/bash
# Finds the fastest ZeRO stage, offload, micro batch and checkpointing that fits one node of 8 GPUs (`tgm-scale tune`).
#   sbatch slurm/tune.sh --config configs/pretrain_vitl.yaml --dir runs/tune-vitl data.shards=/scratch/shards
#   sbatch --gpus-per-node=4 slurm/tune.sh --config configs/pretrain_vitb.yaml --dir runs/tune-vitb --stages 0,1,2 ...
# Needs: a node like those of the run; its shards, and with text guidance its model folder; slurm/cluster.env.
# Costs: not measured on a cluster; a minute or two per candidate. Before the time limit the job is requeued, and
#   finished trials are not repeated.
# Should reach: the last line, the winner's command; DIR/best.json and DIR/best.overrides.
#SBATCH --job-name=tune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --time=8:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
export TGM_HOME=${TGM_HOME:-${SLURM_SUBMIT_DIR:-.}}
source "$TGM_HOME/slurm/launch.sh" || { echo "submit from the root of the repository, or export TGM_HOME" && exit 2; }
trials tools/tune_deepspeed.py "$@"
