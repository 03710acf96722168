"""`nearest`: a clip's positive is not its own caption but the one nearest to it in a queue of earlier captions.

NNCLR (Dwibedi et al. 2021, arXiv 2104.14548, section 3) with captions in the queue, as in DeCLIP (Li et al. 2022,
arXiv 2110.05208, section 3). The text tower is frozen, so that entries of the queue do not age.

Shapes: G clips of the global batch, E width of the embeddings, Q entries of the queue."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.objectives.contrastive import info_nce
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import CoupledOutput, CoupledTerm, EmbeddingPairs, TermSettings
from tgm_scale.runtime.precision import without_autocast

TEMPERATURE = 0.1  # NNCLR's


class Nearest(CoupledTerm):
    """The term `nearest`: symmetric InfoNCE between clips and the captions nearest to theirs, at a fixed temperature.

    Two clips with the same nearest caption are not each other's negatives. Until the queue has entries, the positive
    is a clip's own caption. After each step the captions of its global batch replace the oldest, those of clips of
    weight 0 left out: the queue is the same on every rank, and at any world size."""

    metric_names = ("nearest_accuracy",)

    def __init__(self, settings: TermSettings) -> None:
        super().__init__(settings)
        self._queue_QE = torch.zeros(settings.queue, settings.text)
        self._seen = 0  # captions, so far

    def loss(self, pairs: EmbeddingPairs, learned_L: Tensor) -> CoupledOutput:
        negatives, positive_GE = pairs.negatives, pairs.text_GE
        if self._seen:
            with without_autocast(pairs.text_GE.device):
                queue_QE = self._queue_QE[: self._seen].to(pairs.text_GE.device)
                nearest_G = (negatives.units(pairs.text_GE).flatten(0, 1) @ queue_QE.T).argmax(dim=1)
            positive_GE = queue_QE[nearest_G]
            negatives = Negatives(negatives.weight_G, nearest_G, negatives.clip_ids_G, negatives.contrastive_batch)
        log_scale = torch.full((1,), -math.log(TEMPERATURE), device=pairs.video_GE.device)
        found = info_nce(pairs.video_GE, positive_GE, log_scale, negatives)
        return CoupledOutput(found.loss, {"nearest_accuracy": found.accuracy})

    @torch.no_grad()
    def observe(self, text_GE: Tensor, weight_G: Tensor, valid: int) -> None:
        size = len(self._queue_QE)
        whole_first_G = (weight_G == 0).to(torch.uint8).argsort(stable=True)
        text_GE = F.normalize(text_GE.float()[whole_first_G[:valid]], dim=-1)[-size:]
        place_G = (self._seen + valid - len(text_GE) + torch.arange(len(text_GE), device=text_GE.device)) % size
        self._queue_QE = self._queue_QE.to(text_GE.device).index_copy(0, place_G, text_GE)
        self._seen += valid

    def state(self) -> dict[str, Tensor]:
        return {"queue": self._queue_QE, "seen": torch.tensor([self._seen])}

    def restore(self, state: dict[str, Tensor]) -> None:
        queue_QE, seen = state.get("queue"), state.get("seen")
        if (
            queue_QE is None
            or seen is None
            or (queue_QE.shape, queue_QE.dtype) != (self._queue_QE.shape, torch.float32)
            or (seen.shape, seen.dtype) != ((1,), torch.int64)
            or not queue_QE.isfinite().all()
            or seen < 0
        ):
            raise ValueError(f"wanted a queue of {list(self._queue_QE.shape)} and the count of captions seen")
        self._queue_QE, self._seen = queue_QE.to(self._queue_QE.device), int(seen)
