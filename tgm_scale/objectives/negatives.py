"""The clips of a batch that are contrasted with each other.

Shapes: G clips of the global batch, C = contrastive_batch clips of a group, K = G / C, X anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Negatives:
    """The clips of a global batch that are each other's negatives.

    A clip's negatives are the others of its group of consecutive clips, except those of equal caption or equal clip id
    (repeats of one clip) and those of weight 0."""

    weight_G: Tensor  # 0: a broken clip, in no row, no column and not in the mean
    caption_ids_G: Tensor  # int64, see `contrastive.caption_ids`
    clip_ids_G: Tensor  # int64
    contrastive_batch: int  # clips of a group; divides G

    def __post_init__(self) -> None:
        assert len(self.weight_G) % self.contrastive_batch == 0, (len(self.weight_G), self.contrastive_batch)

    def grouped(self, x_GX: Tensor) -> Tensor:
        """Return [G, ...] as [K, C, ...]."""
        return x_GX.unflatten(0, (-1, self.contrastive_batch))

    def units(self, x_GE: Tensor) -> Tensor:
        """Return embeddings of unit length in groups, float32 [K, C, E]; those of clips of weight 0 are zeros."""
        present_G1 = self.weight_G[:, None] > 0
        # not a product: an absent clip's embedding may be anything
        return self.grouped(F.normalize(torch.where(present_G1, x_GE.float(), 0.0), dim=-1))

    def shares(self) -> Tensor:
        """Return float32 [G]: factors that turn a sum over clips into their mean; all 0 where all weights are."""
        return self.weight_G.float() / self.weight_G.float().sum().clamp(min=torch.finfo(torch.float32).tiny)

    def excluded(self) -> Tensor:
        """Return bool [K, C, C]: true for pairs off the diagonal that are not negatives."""
        absent_KC = self.grouped(self.weight_G == 0)
        same = _equal_pairs(self.grouped(self.caption_ids_G)) | _equal_pairs(self.grouped(self.clip_ids_G))
        same = same | absent_KC[:, :, None] | absent_KC[:, None, :]
        return same & ~torch.eye(self.contrastive_batch, dtype=torch.bool, device=self.weight_G.device)


def _equal_pairs(x_KC: Tensor) -> Tensor:
    return x_KC[:, :, None] == x_KC[:, None, :]
