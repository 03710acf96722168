"""The frozen text tower: captions to embeddings, one caption's result never depending on another's.

Shapes: B captions, L tokens (always the tower's longest), E width of the joint space.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

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
        self._remember(known)
        return torch.stack([known[caption] for caption in captions])

    def _pass(self, captions: list[str]) -> list[Tensor]:
        filled = captions + [""] * (self._per_pass - len(captions))
        embeddings = self._embed(self.tokenize(filled).to(self.device, non_blocking=True)).float()
        return [row.clone() for row in F.normalize(embeddings, dim=-1)[: len(captions)]]

    def _remember(self, used: dict[str, Tensor]) -> None:
        for caption, embedding in used.items():
            self._cache[caption] = embedding
            self._cache.move_to_end(caption)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
