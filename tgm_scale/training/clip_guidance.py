"""Outputs of the frozen towers and of the codec for a batch, turned into masks and caption embeddings.

Shapes: B clips, E width of the text embedding, F of the image tower's features, S slots, R rows, C columns of the
token grid, N its tokens.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from tgm_scale.assembly.towers import Towers
from tgm_scale.contracts import Batch
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.masking.diagnostics import GuidanceMonitor, MotionMonitor, of_another_clip
from tgm_scale.masking.recipes import Masker
from tgm_scale.objectives.contrastive import caption_ids
from tgm_scale.training.data_digest import clip_hashes
from tgm_scale.training.device_clock import DeviceClock
from tgm_scale.training.step import PreparedBatch


@dataclass
class GuidedBatch:
    """A micro batch on the device, with the outputs of the frozen models."""

    batch: Batch
    caption_ids_B: Tensor  # int64
    hashes_B: Tensor  # int64, for the digest
    text_BE: Tensor | None
    maps: dict[str, Tensor | None]  # maps that the masker may need besides relevance, by name
    relevance_BSRC: Tensor | None = None
    swapped_BSRC: Tensor | None = None  # relevance to the captions of the clip `shift` places before
    shift: int = 1
    features_BNF: Tensor | None = None  # image tower's, for the terms that need them


class ClipGuidance:
    """Preparation of micro batches: caption embeddings, the maps that the recipe needs, the mask.

    `compute` copies the batch to the device and runs the frozen models; it depends on nothing but the batch. `prepare`
    makes the mask at the masker's `progress` and updates the metrics. Neither waits for the device."""

    def __init__(self, masker: Masker, towers: Towers, to_device: ToDevice):
        self.masker, self.towers, self.to_device = masker, towers, to_device
        self.clock = DeviceClock(to_device.device)
        self.monitor = GuidanceMonitor(masker) if "relevance" in masker.needs else None
        self.motion = MotionMonitor() if "motion" in masker.needs else None
        self._warned: set[str] = set()

    def __call__(self, batch: Batch) -> PreparedBatch:
        return self.prepare(self.compute(batch))

    @torch.no_grad()
    def compute(self, batch: Batch) -> GuidedBatch:
        hashes_B, shift = torch.tensor(clip_hashes(batch)), _first_repeats(batch.clip_ids)
        batch = self.to_device(batch)
        with self.clock:
            # before caption_ids, which then reuses the tokens of these captions
            text_BE = None if self.towers.text is None else self.towers.text.encode(batch.captions)
            maps: dict[str, Tensor | None] = {"motion": batch.motion, "flow": batch.flow}
            for name, compute in self.towers.maps.items():
                if maps.get(name) is None:  # unless the data workers have computed it
                    maps[name] = compute(batch.video, self.masker.grid)
            own, swapped, features = (None,) * 3
            if "relevance" in self.masker.needs:
                own, swapped, features = self._relevance(batch, text_BE, shift)
            if features is None and self.towers.features is not None:
                features = self.towers.features(batch.video, self.masker.grid)
        same = caption_ids if self.towers.text is None else self.towers.text.caption_ids
        ids_B, hashes_B = self.to_device.numbers(torch.stack([same(batch.captions), hashes_B], dim=1)).unbind(1)
        return GuidedBatch(batch, ids_B, hashes_B, text_BE, maps, own, swapped, shift, features)

    @torch.no_grad()
    def prepare(self, guided_batch: GuidedBatch, progress: float = 0.0) -> PreparedBatch:
        batch, relevance_BSRC = guided_batch.batch, guided_batch.relevance_BSRC
        with self.clock:
            mask = None  # a learned one is drawn by the module that learns it, unless its map is given
            if self.masker.learned is None or self.masker.needs <= guided_batch.maps.keys():
                mask = self.masker(batch.seeds, progress, relevance=relevance_BSRC, **guided_batch.maps)
            if self.motion is not None and batch.motion is not None:
                self.motion.observe(batch.motion, batch.weight)
            if self.monitor is not None and relevance_BSRC is not None:
                another_B = of_another_clip(
                    guided_batch.caption_ids_B, batch.clip_ids, batch.weight, guided_batch.shift
                )
                of_batch = (batch.seeds, batch.weight, another_B, relevance_BSRC, guided_batch.swapped_BSRC)
                self.monitor.observe(*of_batch, progress, **guided_batch.maps)
        ids_B, hashes_B, heads = guided_batch.caption_ids_B, guided_batch.hashes_B, guided_batch.maps.get("heads")
        return PreparedBatch(batch, mask, guided_batch.text_BE, ids_B, hashes_B, guided_batch.features_BNF, heads)

    def _relevance(
        self, batch: Batch, text_BE: Tensor | None, shift: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the relevance of each clip to its own caption or captions, and to those of the clip `shift` places
        before it in the batch; and the image tower's features from the same pass, if needed."""
        if batch.relevance is not None:
            return batch.relevance, None, None
        assert self.towers.relevance is not None and text_BE is not None
        captions_BE = text_BE if batch.caption_sets is None else self._mean_embeddings(batch.caption_sets)
        captions_B2E = torch.stack([captions_BE, captions_BE.roll(shift, 0)], dim=1)
        if self.towers.features is None:
            relevance, features = self.towers.relevance.of_captions(batch.video, captions_B2E, self.masker.grid), None
        else:
            relevance, features = self.towers.relevance.with_features(batch.video, captions_B2E, self.masker.grid)
        own, swapped = relevance.unbind(1)
        return own, swapped, features

    def _mean_embeddings(self, caption_sets: list[list[str]]) -> Tensor:
        """Return the mean embedding of each clip's captions (not of unit length). Relevance is linear in the caption:
        that to the mean embedding is the mean of those to each caption, at the cost of one."""
        assert self.towers.text is not None
        embeddings = self.towers.text.encode([caption for captions in caption_sets for caption in captions])
        return torch.stack([part.mean(0) for part in embeddings.split([len(captions) for captions in caption_sets])])

    def metrics(self) -> dict[str, float]:
        """Return the guidance metrics of this process's clips since the last call; empty without guidance."""
        return {
            name: value
            for monitor in (self.monitor, self.motion)
            if monitor is not None
            for name, value in monitor.metrics().items()
        }

    def warn_once(self) -> None:
        """Print a warning, once per start, if the captions have no influence on the masks."""
        for monitor in (self.monitor, self.motion):
            warning = None if monitor is None else monitor.warning()
            if warning and type(monitor).__name__ not in self._warned:
                self._warned.add(type(monitor).__name__)
                print(f"\nwarning: {warning}", file=sys.stderr, flush=True)


def _first_repeats(clip_ids_B: Tensor) -> int:
    """Return the number of leading clips that come from one sample; each sample has as many, side by side."""
    others = (clip_ids_B != clip_ids_B[0]).nonzero()
    return int(others[0]) if len(others) else len(clip_ids_B)
