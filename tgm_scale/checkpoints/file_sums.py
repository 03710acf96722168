"""A fast hash of a file against damage (not against attackers), checked at every start.

A start reads gigabytes of state, and blake2b (0.7 GB/s on one core) takes longer for that than the rest of resuming
does. So the file's 64-bit words are summed first, in blocks of 512 rows of 512, by row and by column, and the sums are
hashed: 9 GB a second. One word that changed changes a sum of each kind; words or blocks that changed places, too. Not
seen: changes of four words at the corners of a rectangle of a block that cancel (of their highest bits, say);
`tgm-scale check` sees those, which compares blake2b."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

_SIDE = 512
_BLOCK = 8 * _SIDE * _SIDE  # bytes


def sums(path: Path) -> str:
    """In hexadecimal. Raises OSError."""
    found, block = hashlib.blake2b(digest_size=16), bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while size := _fill(file.readinto, block):
            if size < _BLOCK:
                found.update(memoryview(block)[:size])
                continue
            words = np.frombuffer(block, np.uint64).reshape(_SIDE, _SIDE)
            found.update(words.sum(axis=0).data)
            found.update(words.sum(axis=1).data)
    return found.hexdigest()


def _fill(read: Callable[[memoryview], int | None], block: bytearray) -> int:
    """A raw file may give less than it is asked for."""
    size = 0
    while got := read(memoryview(block)[size:]):
        size += got
    return size
