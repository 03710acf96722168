"""A digest of the clips of a step: keys, seeds, crops, captions and masks.

40 bits per clip, summed modulo 2**40: the sum over ranks is exact in a float64 up to 8,192 of them, and does not
depend on which rank had which clip. Values on the host are hashed there; the masks are mixed in on the device, so that
the host does not wait for them. Shapes: B clips, V visible tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tgm_scale.contracts import Batch, Mask
from tgm_scale.runtime import seeding

DIGEST_KIND = "3-"  # prefix in metrics.jsonl: digests of different kinds cannot be compared
_BITS = 40
_MODULUS = 1 << _BITS
_ODD = 2654435761  # 32 bits, odd: its products with numbers below 2**31 differ, also modulo 2**40
_BELOW_2_31 = (1 << 31) - 1


def clip_hashes(batch: Batch) -> list[int]:
    """Return a hash of 40 bits for each clip, of everything but its mask. `batch` is on the host."""
    rows = zip(batch.keys, batch.captions, batch.seeds.tolist(), batch.crops.tolist(), strict=True)
    return [
        seeding.key("digest", key, caption, seed, *(str(side) for side in crop)) >> (63 - _BITS)
        for key, caption, seed, crop in rows
    ]


def with_masks(hashes_B: Tensor, mask: Mask) -> Tensor:
    """Return a micro batch's sum of hashes with masks mixed in, int64 scalar. hashes_B: int64, where the masks are."""
    places_V = torch.arange(1, mask.visible.shape[1] + 1, device=mask.visible.device)
    masks_B = (mask.visible * places_V).sum(1) & _BELOW_2_31
    mixed_B = hashes_B ^ (masks_B * _ODD & _MODULUS - 1)
    return mixed_B.sum()


def of_rank(sums: Sequence[Tensor]) -> Tensor:
    """Return the sum over this rank's micro batches, a float64 scalar to be summed over the ranks."""
    return (torch.stack(list(sums)).sum() % _MODULUS).double()


def in_words(sum_of_ranks: float) -> str:
    """Return the digest as text, as metrics.jsonl stores it."""
    return f"{DIGEST_KIND}{int(sum_of_ranks) % _MODULUS:010x}"
