"""What the frozen towers say about a batch, turned into masks and caption embeddings."""

from __future__ import annotations

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

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Prepared:
        text_BE = self.towers.text.encode(batch.captions) if self.towers.text is not None else None
        relevance_BSRC = self._relevance(batch, text_BE)
        mask = self.masker(batch.seeds, relevance=relevance_BSRC, motion=batch.motion)
        if self.monitor is not None and relevance_BSRC is not None:
            self.monitor.observe(batch.seeds, relevance_BSRC, mask)
        return Prepared(batch, mask, text_BE, caption_ids(batch.captions).to(batch.video.device))

    def _relevance(self, batch: Batch, text_BE: Tensor | None) -> Tensor | None:
        if "relevance" not in self.masker.needs:
            return None
        if batch.relevance is not None:
            return batch.relevance
        assert self.towers.relevance is not None and text_BE is not None
        return self.towers.relevance(batch.video, text_BE, self.masker.grid)
