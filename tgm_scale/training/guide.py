"""What the frozen towers say about a batch, turned into masks and caption embeddings.

Shapes: B clips, E width of the text embedding, S slots, R rows, C columns of the token grid.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from tgm_scale.contracts import Batch
from tgm_scale.masking.diagnostics import GuidanceMonitor
from tgm_scale.masking.recipes import Masker
from tgm_scale.objectives.contrastive import caption_ids
from tgm_scale.training.build import Towers
from tgm_scale.training.step import Prepared


class Guide:
    """Prepares micro batches: caption embeddings, relevance where the recipe asks for it, the mask."""

    def __init__(self, masker: Masker, towers: Towers):
        self.masker, self.towers = masker, towers
        self.monitor = GuidanceMonitor(masker) if "relevance" in masker.needs else None
        self._warned = False

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Prepared:
        text_BE = None if self.towers.text is None else self.towers.text.encode(batch.captions)
        ids_B = caption_ids(batch.captions).to(batch.video.device)
        if self.monitor is None:
            return Prepared(batch, self.masker(batch.seeds, motion=batch.motion), text_BE, ids_B)
        relevance_BSRC, swapped_BSRC = self._relevance(batch, text_BE)
        mask = self.masker(batch.seeds, relevance=relevance_BSRC, motion=batch.motion)
        self.monitor.observe(batch.seeds, batch.weight, ids_B, relevance_BSRC, swapped_BSRC, motion=batch.motion)
        return Prepared(batch, mask, text_BE, ids_B)

    def _relevance(self, batch: Batch, text_BE: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Relevance of each clip to its own caption, and to the caption before it in the batch."""
        if batch.relevance is not None:
            return batch.relevance, None
        assert self.towers.relevance is not None and text_BE is not None
        captions_B2E = torch.stack([text_BE, text_BE.roll(1, 0)], dim=1)
        own, swapped = self.towers.relevance.of_captions(batch.video, captions_B2E, self.masker.grid).unbind(1)
        return own, swapped

    def figures(self) -> dict[str, float]:
        """The guidance figures of this process's clips since the last call; empty where nothing is guided."""
        return {} if self.monitor is None else self.monitor.figures()

    def warn_once(self) -> None:
        """Say in plain words, once a start, when the guidance says nothing."""
        warning = None if self.monitor is None or self._warned else self.monitor.warning()
        if warning:
            self._warned = True
            print(f"\nwarning: {warning}", file=sys.stderr, flush=True)
