"""Frozen text tower: captions to embeddings, where one caption's result never depends on another's.

Shapes: B captions, P of a pass, L tokens (the tower's maximum), l tokens of a pass, E width of the embedding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.runtime import seeding

CAPTIONS_PER_PASS = 64
CACHE_SIZE = 16_384  # captions; 50 MB of float32 at a width of 768
SHORTEST = 16  # tokens: the minimum length of a pass, which is 16, 32, 64 and so on


def real_tokens(ids_BL: Tensor, pad: int) -> Tensor:
    """Return the number of tokens before the padding at the end: int64 [B]; L where all are padding."""
    return ids_BL.shape[1] - (ids_BL != pad).flip(1).int().argmax(1)


class TextTower:
    """Text tower that embeds captions in passes of a fixed shape and caches the most recent ones.

    A row of a matrix product may depend, in its last bit, on the product's shape, and on a CPU on the row's place,
    too. A caption is therefore always processed in the same shape: alone on a CPU, CAPTIONS_PER_PASS elsewhere, with
    captions repeated to fill the last pass. A cold cache, a warm one and any other batch then give the same bits.

    A tower that ignores padding may take 512 tokens where a caption has 20. Its captions are cut to the least of
    16, 32, 64, ..., L that holds them, for each caption separately."""

    def __init__(
        self,
        tokenize: Callable[[list[str]], Tensor],
        embed: Callable[[Tensor], Tensor],
        width: int,
        device: torch.device,
        cache_size: int = CACHE_SIZE,
        *,
        pad: int | None = None,
    ):
        """Set up the tower. tokenize: captions -> int64 [B, L]. embed: int64 [P, l] on `device` -> [P, E], before
        normalisation. pad: the padding token at the end, if `embed` ignores it; else l is always L."""
        self.tokenize, self.width, self.device = tokenize, width, device
        self._embed, self._cache_size, self._pad = embed, cache_size, pad
        self._per_pass = 1 if device.type == "cpu" else CAPTIONS_PER_PASS
        self._cache: OrderedDict[str, Tensor] = OrderedDict()  # caption -> float32 [E], latest last
        self._ids: OrderedDict[str, int] = OrderedDict()  # caption -> hash of its tokens

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Return embeddings of unit length, float32 [B, E] on the tower's device."""
        if not captions:
            return torch.empty(0, self.width, device=self.device)
        known = {caption: self._cache[caption] for caption in captions if caption in self._cache}
        missing = [caption for caption in dict.fromkeys(captions) if caption not in known]
        for part, tokens_Pl in self._passes(missing):
            if self.device.type == "cuda":  # CUDA may wait for a copy from memory that is not pinned
                tokens_Pl = tokens_Pl.pin_memory()
            embeddings_PE = self._embed(tokens_Pl.to(self.device, non_blocking=True)).float()
            known.update(zip(part, (row.clone() for row in F.normalize(embeddings_PE, dim=-1))))
        self._cache.update(known)
        for cache in (self._cache, self._ids):
            _keep_latest(cache, known, self._cache_size)
        return torch.stack([known[caption] for caption in captions])

    def caption_ids(self, captions: list[str]) -> Tensor:
        """Return int64 [B] on the CPU: equal for captions of equal tokens, which are one caption to the tower (they
        may differ in case, in white space, or beyond its maximum length)."""
        if missing := [caption for caption in dict.fromkeys(captions) if caption not in self._ids]:
            self._note(missing, self.tokenize(missing))
        found = torch.tensor([self._ids[caption] for caption in captions], dtype=torch.int64)
        _keep_latest(self._ids, captions, self._cache_size)
        return found

    def _note(self, captions: list[str], tokens_BL: Tensor) -> None:
        for caption, tokens in zip(captions, tokens_BL.tolist()):
            self._ids[caption] = seeding.key("caption", *tokens)

    def _passes(self, captions: list[str]) -> Iterator[tuple[list[str], Tensor]]:
        """Yield captions of one length, at most those of a pass, and the tokens of the whole pass, int64 [P, l]."""
        if not captions:
            return
        tokens_BL = self.tokenize(captions)
        self._note(captions, tokens_BL)
        lengths = self._lengths(tokens_BL)
        for length in dict.fromkeys(lengths):
            rows = [row for row, of_row in enumerate(lengths) if of_row == length]
            for start in range(0, len(rows), self._per_pass):
                part = rows[start : start + self._per_pass]
                filled = part + part[-1:] * (self._per_pass - len(part))
                yield [captions[row] for row in part], tokens_BL[filled, :length]

    def _lengths(self, tokens_BL: Tensor) -> list[int]:
        longest = tokens_BL.shape[1]
        if self._pad is None:
            return [longest] * len(tokens_BL)
        real = real_tokens(tokens_BL, self._pad).tolist()
        return [min(max(SHORTEST, 1 << (count - 1).bit_length()), longest) for count in real]


def _keep_latest(known: OrderedDict[str, Any], used: Iterable[str], size: int) -> None:
    for caption in used:
        if caption in known:
            known.move_to_end(caption)
    while len(known) > size:
        known.popitem(last=False)
