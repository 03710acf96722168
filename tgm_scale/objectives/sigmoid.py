"""`sigmoid`: each pair of a clip and a caption is judged by itself, with no softmax over the batch.

Zhai et al. 2023, "Sigmoid loss for language image pre-training" (SigLIP, arXiv 2303.15343), section 3.2.

Shapes: G clips of the global batch, E embedding width, C clips of a group, K groups, L = 2 learned parameters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.objectives.contrastive import top1
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import CoupledOutput, CoupledTerm, EmbeddingPairs
from tgm_scale.runtime.precision import without_autocast

INITIAL_LOG_SCALE, INITIAL_BIAS = math.log(10.0), -10.0  # the paper's, section 3.2


def sigmoid_loss(
    video_GE: Tensor, text_GE: Tensor, log_scale: Tensor, bias: Tensor, negatives: Negatives
) -> tuple[Tensor, Tensor]:
    """Return (loss, accuracy), float32 scalars: the mean over clips of the sum over their group's captions of
    -log sigmoid(z (scale x cosine + bias)), z = 1 for a clip's own caption and -1 for its negatives'.

    Pairs that are not negatives (`Negatives`) and clips of weight 0 have no part. accuracy: as in
    `contrastive.info_nce`. Computed in float32 regardless of autocast."""
    with without_autocast(video_GE.device):
        cosine_KCC = negatives.units(video_GE) @ negatives.units(text_GE).transpose(1, 2)
        logits_KCC = log_scale.float().exp() * cosine_KCC + bias.float()
        own_CC = torch.eye(negatives.contrastive_batch, dtype=torch.bool, device=video_GE.device)
        left_out_KCC = negatives.excluded()
        loss_KCC = -F.logsigmoid(torch.where(own_CC, logits_KCC, -logits_KCC)).masked_fill(left_out_KCC, 0.0)
        share_G = negatives.shares()
        loss = (share_G * loss_KCC.sum(2).flatten()).sum()
        ranked_KCC = logits_KCC.detach().masked_fill(left_out_KCC, -math.inf)
        accuracy = (share_G * top1(ranked_KCC, ranked_KCC.diagonal(dim1=1, dim2=2).flatten())).sum()
    return loss, accuracy


class Sigmoid(CoupledTerm):
    """The term `sigmoid`. Its learned parameters: the logarithm of the scale, and the bias."""

    metric_names = ("sigmoid_accuracy", "sigmoid_scale", "sigmoid_bias")
    initial_values = (INITIAL_LOG_SCALE, INITIAL_BIAS)

    def loss(self, pairs: EmbeddingPairs, learned_L: Tensor) -> CoupledOutput:
        log_scale, bias = learned_L.unbind()
        loss, accuracy = sigmoid_loss(pairs.video_GE, pairs.text_GE, log_scale, bias, pairs.negatives)
        return CoupledOutput(loss, {"sigmoid_accuracy": accuracy})

    def learned_metrics(self, learned_L: Tensor) -> dict[str, Tensor]:
        log_scale, bias = learned_L.unbind()
        return {"sigmoid_scale": log_scale.exp(), "sigmoid_bias": bias}
