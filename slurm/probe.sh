#!/bin/bash
# Probes the frozen features of a pretrained checkpoint: any probe_*.yaml of configs, on 1 node of 8 GPUs.
#   sbatch slurm/probe.sh configs/probe_k400.yaml encoder.checkpoint=runs/pretrain_vitb data.root=/scratch/k400
#   TGM_COMMAND=knn sbatch slurm/probe.sh configs/probe_ssv2.yaml encoder.checkpoint=runs/x run.dir=runs/knn ...
# Works with any number of nodes and of GPUs per node: each computes a part of the features; results do not change.
# Needs: the dataset's lists and videos, or labelled shards; a checkpoint; slurm/cluster.env.
# Costs: not measured on a cluster; the videos are decoded once. Before the time limit the job is requeued, and resumes
#   from the features in RUN/features.
# Should reach: not measured here; the configuration's header has the published result. RUN/results.json at the end.
#SBATCH --job-name=probe
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=8:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
export TGM_HOME=${TGM_HOME:-${SLURM_SUBMIT_DIR:-.}}
source "$TGM_HOME/slurm/launch.sh" || { echo "submit from the root of the repository, or export TGM_HOME" && exit 2; }
launch "${TGM_COMMAND:-probe}" "$@"
