"""`contrast`: symmetric InfoNCE against frozen text, negatives among a fixed number of clips.

Shapes: G clips of the global batch, E width of the embeddings, C = contrastive_batch clips of a group, K = G / C.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import CoupledOutput, CoupledTerm, EmbeddingPairs
from tgm_scale.runtime import seeding
from tgm_scale.runtime.precision import without_autocast

INITIAL_SCALE = 1 / 0.07  # CLIP's start and upper bound (Radford et al. 2021, section 2.5)
MAX_SCALE = 100.0
MIN_SCALE = 1.0  # open_clip's lower bound


class Contrast(NamedTuple):
    """The contrastive term of a global batch, in scalars."""

    loss: Tensor  # float32, mean over the clips of weight > 0
    accuracy: Tensor  # share of them whose own caption scores highest among its negatives; 1 / n if n tie
    scale: Tensor  # the logit scale used: 1 / temperature, MIN_SCALE to MAX_SCALE


class _Bounded(torch.autograd.Function):
    """Clamp of x whose gradient past a limit stays where descent leads back (a plain clamp's would be 0 for ever)."""

    @staticmethod
    def forward(ctx, x: Tensor, least: float, most: float) -> Tensor:
        ctx.save_for_backward(x > most, x < least)
        return x.clamp(least, most)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        over, under = ctx.saved_tensors
        return torch.where((over & (grad < 0)) | (under & (grad > 0)), 0.0, grad), None, None


def bounded_log_scale(log_scale: Tensor) -> Tensor:
    """Return the parameter as it is used, float32 scalar: the logarithm of a scale from MIN_SCALE to MAX_SCALE."""
    bounded: Tensor = _Bounded.apply(log_scale.float().reshape(()), math.log(MIN_SCALE), math.log(MAX_SCALE))
    return bounded


def caption_ids(captions: list[str]) -> Tensor:
    """Return int64 [B] on the CPU: equal for captions that differ at most in case and white space."""
    return torch.tensor([seeding.key("caption", *caption.lower().split()) for caption in captions], dtype=torch.int64)


def info_nce(video_GE: Tensor, text_GE: Tensor, log_scale: Tensor, negatives: Negatives) -> Contrast:
    """Return the symmetric InfoNCE (van den Oord et al. 2018; Radford et al. 2021) within groups of consecutive clips.

    video, text: not necessarily normalised; log_scale: one element, see `bounded_log_scale`. A clip of weight 0 is
    left out, whatever its embeddings hold; where all weights are 0 the loss is 0. In float32 regardless of
    autocast."""
    with without_autocast(video_GE.device):
        scale = bounded_log_scale(log_scale).exp()
        video_KCE, text_KCE = negatives.units(video_GE), negatives.units(text_GE)
        logits_KCC = scale * video_KCE @ text_KCE.transpose(1, 2)
        logits_KCC = logits_KCC.masked_fill(negatives.excluded(), -math.inf)
        positive_G = logits_KCC.diagonal(dim1=1, dim2=2).flatten()
        to_text_G, to_video_G = (logits_KCC.logsumexp(dim).flatten() - positive_G for dim in (2, 1))
        share_G = negatives.shares()
        loss = (share_G * (to_text_G + to_video_G) / 2).sum()
        top1_G = top1(logits_KCC.detach(), positive_G.detach())
    return Contrast(loss, (share_G * top1_G).sum(), scale.detach())


def top1(logits_KCC: Tensor, positive_G: Tensor) -> Tensor:
    """Return float32 [G]: 1 where a clip's own caption alone scores highest, 1 / n where it is one of n captions that
    tie for it, else 0."""
    best_KC1 = logits_KCC.amax(2, keepdim=True)
    alike_G = (logits_KCC == best_KC1).sum(2).flatten()
    return torch.where(positive_G == best_KC1.flatten(), 1 / alike_G.float(), 0.0)


class InfoNCE(CoupledTerm):
    """The term `contrast`, with a learned temperature (CLIP, section 2.5). Its learned parameter is the logarithm of
    the logit scale; checkpoints name it log_scale (assembly/joint_module.py)."""

    column = "loss_contrastive"
    metric_names = ("contrastive_accuracy", "temperature")
    initial_values = (math.log(INITIAL_SCALE),)

    def loss(self, pairs: EmbeddingPairs, learned_L: Tensor) -> CoupledOutput:
        contrast = info_nce(pairs.video_GE, pairs.text_GE, learned_L, pairs.negatives)
        return CoupledOutput(contrast.loss, {"contrastive_accuracy": contrast.accuracy})

    def learned_metrics(self, learned_L: Tensor) -> dict[str, Tensor]:
        """Return the temperature as it is used, within its bounds."""
        return {"temperature": torch.exp(-bounded_log_scale(learned_L))}
