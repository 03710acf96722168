"""The frozen text tower: captions to embeddings, one caption's result never depending on another's.

Shapes: B captions, L tokens (always the tower's longest), E width of the joint space.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.runtime import seeding

CAPTIONS_PER_PASS = 64
CACHE_SIZE = 16_384  # captions; 50 MB of float32 at a width of 768


class TextTower:
    """Embeds captions in passes of a fixed shape and remembers the latest.

    A row of a matrix product may depend, in its last bit, on the product's shape, and on a CPU on the row's place
    too. So every pass has the same shape: one caption on a CPU, CAPTIONS_PER_PASS elsewhere, the last pass filled up
    with empty captions. A cold cache, a warm one and any other batch then give the same bits."""

    def __init__(
        self,
        tokenize: Callable[[list[str]], Tensor],
        embed: Callable[[Tensor], Tensor],
        width: int,
        device: torch.device,
        cache_size: int = CACHE_SIZE,
    ):
        """tokenize: captions -> int64 [B, L]. embed: int64 [B, L] on `device` -> [B, E], before normalisation."""
        self.tokenize, self.width, self.device = tokenize, width, device
        self._embed, self._cache_size = embed, cache_size
        self._per_pass = 1 if device.type == "cpu" else CAPTIONS_PER_PASS
        self._cache: OrderedDict[str, Tensor] = OrderedDict()  # caption -> float32 [E], latest last
        self._ids: OrderedDict[str, int] = OrderedDict()  # caption -> what stands for its tokens

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Embeddings of unit length, float32 [B, E] on the tower's device."""
        if not captions:
            return torch.empty(0, self.width, device=self.device)
        known = {caption: self._cache[caption] for caption in captions if caption in self._cache}
        missing = [caption for caption in dict.fromkeys(captions) if caption not in known]
        for start in range(0, len(missing), self._per_pass):
            part = missing[start : start + self._per_pass]
            known.update(zip(part, self._pass(part)))
        self._cache.update(known)
        for cache in (self._cache, self._ids):
            _keep_latest(cache, known, self._cache_size)
        return torch.stack([known[caption] for caption in captions])

    def caption_ids(self, captions: list[str]) -> Tensor:
        """int64 [B] on the CPU: equal for captions of equal tokens, which are one caption to the tower (they may
        differ in case, in white space, or beyond the longest text it takes)."""
        if missing := [caption for caption in dict.fromkeys(captions) if caption not in self._ids]:
            self._note(missing, self.tokenize(missing))
        found = torch.tensor([self._ids[caption] for caption in captions], dtype=torch.int64)
        _keep_latest(self._ids, captions, self._cache_size)
        return found

    def _note(self, captions: list[str], tokens_BL: Tensor) -> None:
        for caption, tokens in zip(captions, tokens_BL.tolist()):
            self._ids[caption] = seeding.key("caption", *tokens)

    def _pass(self, captions: list[str]) -> list[Tensor]:
        filled = captions + [""] * (self._per_pass - len(captions))
        tokens_BL = self.tokenize(filled)
        self._note(captions, tokens_BL)
        embeddings = self._embed(tokens_BL.to(self.device, non_blocking=True)).float()
        return [row.clone() for row in F.normalize(embeddings, dim=-1)[: len(captions)]]


def _keep_latest(known: OrderedDict[str, Any], used: Iterable[str], size: int) -> None:
    for caption in used:
        if caption in known:
            known.move_to_end(caption)
    while len(known) > size:
        known.popitem(last=False)
