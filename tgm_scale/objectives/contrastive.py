"""The video-text contrast: symmetric InfoNCE against frozen text, negatives among a fixed number of clips.

Shapes: G clips of the global batch, E width of the embeddings, C = contrastive_batch clips of a group, K = G / C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.runtime import seeding
from tgm_scale.runtime.precision import without_autocast

INITIAL_SCALE = 1 / 0.07  # CLIP's start and upper bound (Radford et al. 2021, section 2.5)
MAX_SCALE = 100.0
MIN_SCALE = 1.0  # open_clip's lower bound


class Contrast(NamedTuple):
    """The contrastive term of a global batch; scalars."""

    loss: Tensor  # float32, mean over the clips of weight > 0
    accuracy: Tensor  # share of them whose own caption scores highest among its negatives; of n equal ones, 1 / n
    scale: Tensor  # the logit scale used: 1 / temperature, MIN_SCALE to MAX_SCALE


@dataclass(frozen=True)
class Negatives:
    """Which clips of a global batch are each other's negatives.

    A clip's negatives are the others of its group of consecutive clips, except those of equal caption or equal clip
    id (repeats of one clip) and those of weight 0."""

    weight_G: Tensor  # 0: a broken clip, in no row, no column and not in the mean
    caption_ids_G: Tensor  # int64, see `caption_ids`
    clip_ids_G: Tensor  # int64
    contrastive_batch: int  # clips of a group; divides G

    def __post_init__(self) -> None:
        assert len(self.weight_G) % self.contrastive_batch == 0, (len(self.weight_G), self.contrastive_batch)

    def grouped(self, x_GX: Tensor) -> Tensor:
        """[G, ...] as [K, C, ...]."""
        return x_GX.unflatten(0, (-1, self.contrastive_batch))

    def excluded(self) -> Tensor:
        """bool [K, C, C]: pairs off the diagonal that are no negatives."""
        absent_KC = self.grouped(self.weight_G == 0)
        same = _equal_pairs(self.grouped(self.caption_ids_G)) | _equal_pairs(self.grouped(self.clip_ids_G))
        same = same | absent_KC[:, :, None] | absent_KC[:, None, :]
        return same & ~torch.eye(self.contrastive_batch, dtype=torch.bool, device=self.weight_G.device)


def _equal_pairs(x_KC: Tensor) -> Tensor:
    return x_KC[:, :, None] == x_KC[:, None, :]


class _Bounded(torch.autograd.Function):
    """x between two limits; past them the gradient stays where descent leads back (a clamp's would be 0 for ever)."""

    @staticmethod
    def forward(ctx, x: Tensor, least: float, most: float) -> Tensor:
        ctx.save_for_backward(x > most, x < least)
        return x.clamp(least, most)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        over, under = ctx.saved_tensors
        return torch.where((over & (grad < 0)) | (under & (grad > 0)), 0.0, grad), None, None


def initial_log_scale() -> Tensor:
    """The learnable temperature's first value: a scalar, the logarithm of the logit scale."""
    return torch.tensor(math.log(INITIAL_SCALE))


def bounded_log_scale(log_scale: Tensor) -> Tensor:
    """The parameter as it is used, float32 scalar: the logarithm of a logit scale from MIN_SCALE to MAX_SCALE."""
    bounded: Tensor = _Bounded.apply(log_scale.float().reshape(()), math.log(MIN_SCALE), math.log(MAX_SCALE))
    return bounded


def caption_ids(captions: list[str]) -> Tensor:
    """int64 [B] on the CPU: equal for captions that differ at most in case and white space."""
    return torch.tensor([seeding.key("caption", *caption.lower().split()) for caption in captions], dtype=torch.int64)


def info_nce(video_GE: Tensor, text_GE: Tensor, log_scale: Tensor, negatives: Negatives) -> Contrast:
    """Symmetric InfoNCE (van den Oord et al. 2018; Radford et al. 2021) within groups of consecutive clips.

    video, text: not necessarily normalised; log_scale: one element, see `bounded_log_scale`. A clip of weight 0
    is left out, whatever its embeddings hold; where all weights are 0 the loss is 0. Computed in float32 whatever
    autocast."""
    weight_G = negatives.weight_G
    with without_autocast(video_GE.device):
        scale = bounded_log_scale(log_scale).exp()
        present_G1 = weight_G[:, None] > 0
        video_KCE, text_KCE = (  # not a product: an absent clip's embedding may be anything
            negatives.grouped(F.normalize(torch.where(present_G1, x.float(), 0.0), dim=-1))
            for x in (video_GE, text_GE)
        )
        logits_KCC = scale * video_KCE @ text_KCE.transpose(1, 2)
        logits_KCC = logits_KCC.masked_fill(negatives.excluded(), -math.inf)
        positive_G = logits_KCC.diagonal(dim1=1, dim2=2).flatten()
        to_text_G, to_video_G = (logits_KCC.logsumexp(dim).flatten() - positive_G for dim in (2, 1))
        share_G = weight_G.float() / weight_G.float().sum().clamp(min=torch.finfo(torch.float32).tiny)
        loss = (share_G * (to_text_G + to_video_G) / 2).sum()
        top1_G = _top1(logits_KCC.detach(), positive_G.detach())
    return Contrast(loss, (share_G * top1_G).sum(), scale.detach())


def _top1(logits_KCC: Tensor, positive_G: Tensor) -> Tensor:
    """float32 [G]: 1 where a clip's own caption alone scores highest, 1 / n where n captions do so alike, else 0."""
    best_KC1 = logits_KCC.amax(2, keepdim=True)
    alike_G = (logits_KCC == best_KC1).sum(2).flatten()
    return torch.where(positive_G == best_KC1.flatten(), 1 / alike_G.float(), 0.0)


def contrastive_gradients(
    video_GE: Tensor, text_GE: Tensor, log_scale: Tensor, negatives: Negatives
) -> tuple[Contrast, Tensor, Tensor]:
    """`info_nce` and the loss's gradients by video embeddings, float32 [G, E], and by log_scale, of its shape.

    For cached gradients (GradCache, Gao et al. 2021): embed all clips without a graph, take these gradients, then
    embed micro batch by micro batch with a graph and back-propagate `(embedding * gradient).sum()`. The text is
    frozen. Nothing is returned with a graph, whatever the caller's grad mode."""
    with torch.enable_grad():
        video = video_GE.detach().float().requires_grad_()
        scale = log_scale.detach().float().requires_grad_()
        contrast = info_nce(video, text_GE.detach(), scale, negatives)
        video_gradient, scale_gradient = torch.autograd.grad(contrast.loss, (video, scale))
    return contrast._replace(loss=contrast.loss.detach()), video_gradient, scale_gradient
