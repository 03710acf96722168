"""Keyed, counter-based randomness: the same key gives the same numbers on any rank, device and batch.

No randomness in a run has a state. A number is a pure function of a key: (seed, purpose, step or sample key, counter).
Functions for the host do not import torch, which would cost a command that only reads JSON 2 seconds of a core.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: the increment of splitmix64
_MIX_1 = 0xBF58476D1CE4E5B9  # the two multipliers of splitmix64's finaliser (Steele, Lea, Flood 2014)
_MIX_2 = 0x94D049BB133111EB
_MASK_63 = (1 << 63) - 1
_MASK_64 = (1 << 64) - 1


def key(*parts: int | str) -> int:
    """Return a 63-bit seed for any sequence of integers and strings; ("a", "b") and ("ab",) differ."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & _MASK_63


def _signed(value: int) -> int:
    """Return a 64-bit pattern as a signed integer for torch's int64 arithmetic (which wraps)."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift int64 right, logically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def bits(seeds_B: Tensor, count: int, purpose: str) -> Tensor:
    """Return 63 random bits for each (seed, counter): int64 [B, count], not negative.

    seeds_B: int64 [B] on any device. Purposes give independent streams of one seed."""
    import torch

    counter_N = torch.arange(1, count + 1, device=seeds_B.device, dtype=torch.int64) * _signed(_GOLDEN)
    x = _finalise(_finalise(seeds_B ^ key(purpose))[:, None] + counter_N)
    return x & _MASK_63


def _finalise(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)


def uniform(seeds_B: Tensor, count: int, purpose: str) -> Tensor:
    """Return uniform float32 [B, count] in [0, 1)."""
    return (bits(seeds_B, count, purpose) >> 39).float() * 2.0**-24


def gumbel(seeds_B: Tensor, count: int, purpose: str) -> Tensor:
    """Return standard Gumbel noise, float32 [B, count]."""
    u = (bits(seeds_B, count, purpose) >> 11).double() * 2.0**-52 + 2.0**-53
    return (-(-u.log()).log()).float()


def permutation(seed: int, count: int) -> np.ndarray:
    """Return a keyed permutation of range(count), int64; independent of numpy's own generators and their versions."""
    counter_N = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    mixed = np.uint64(_finalise_int(seed ^ key("permutation")))
    return np.argsort(_finalise_words(mixed + counter_N) & np.uint64(_MASK_63), kind="stable")


def draw(seed: int, purpose: str, count: int = 1) -> list[float]:
    """Return `count` uniform numbers in [0, 1) for host code (a crop, an offset, a caption).

    The same numbers as `uniform`, in Python integers: for a few of them this takes a tenth of the time of tensors."""
    mixed = _finalise_int(seed ^ key(purpose))
    return [((_finalise_int(mixed + n * _GOLDEN) & _MASK_63) >> 39) * 2.0**-24 for n in range(1, count + 1)]


def _finalise_int(x: int) -> int:
    x &= _MASK_64
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK_64
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK_64
    return x ^ (x >> 31)


def _finalise_words(x: np.ndarray) -> np.ndarray:
    """Apply `_finalise` to uint64, which wraps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator for a draw that needs torch's own distributions (weight initialisation)."""
    import torch

    return torch.Generator().manual_seed(key(*parts))
