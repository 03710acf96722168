#!/bin/bash
# Finetunes and tests a pretrained checkpoint: any finetune_*.yaml of configs, on 1 node of 8 GPUs.
#   sbatch slurm/finetune.sh configs/finetune_k400.yaml train.init_from=runs/pretrain_vitb data.root=/scratch/k400
#   sbatch --nodes=4 --time=8:00:00 slurm/finetune.sh configs/finetune_ssv2.yaml train.init_from=vitb.pth data.root=...
# Works with any number of nodes and of GPUs per node: with fewer GPUs, the global batch is accumulated.
# Needs: GPUs with 80 GB; the dataset's lists and videos, or labelled shards; a checkpoint; slurm/cluster.env.
# Costs: not measured on a cluster. Before the time limit the run saves a checkpoint, is requeued and resumes.
# Should reach: not measured here; the configuration's header has the published result. RUN/results.json at the end.
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
export TGM_HOME=${TGM_HOME:-${SLURM_SUBMIT_DIR:-.}}
source "$TGM_HOME/slurm/launch.sh" || { echo "submit from the root of the repository, or export TGM_HOME" && exit 2; }
launch finetune "$@"
