#!/bin/bash
# ViT-L, joint objective with text-guided masking: configs/pretrain_vitl.yaml on 16 nodes of 8 GPUs.
#   sbatch slurm/pretrain_vitl.sh data.shards=/scratch/internvid/shards guidance.towers=/scratch/clip-vit-base-patch32
#   sbatch --nodes=8 --time=12:00:00 slurm/pretrain_vitl.sh ...
# Works with any number of nodes and of GPUs per node: with fewer GPUs, the global batch is accumulated.
# Needs: GPUs with 80 GB; shards (slurm/make_shards.sh); the folder of a CLIP or SigLIP model; slurm/cluster.env.
# Costs: not measured on a cluster; `tgm-scale plan --config configs/pretrain_vitl.yaml --nodes 16` calculates hours.
# Every start checks the nodes first. Before the time limit the run saves a checkpoint, is requeued and resumes.
# Should reach: not measured here; loss_reconstruction below 0.6 and loss_contrastive falling within 2,000 steps.
#SBATCH --job-name=pretrain_vitl
#SBATCH --nodes=16
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
launch pretrain configs/pretrain_vitl.yaml "$@"
