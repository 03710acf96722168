"""One optimiser step over a global batch: forward, the terms of the objective, backward, update.

Shapes: A micro steps of accumulation, W ranks, B clips of one micro batch, G clips of all ranks and some micro steps,
N tokens of a clip, E embedding width, F width of the tower's features, T clip terms, L learned parameters of a coupled
term, M metrics of a step. The clip (a, r, b) has place a * W * B + r * B + b in the global batch, whatever A, W and B
are.

Coupled terms compare clips of other ranks and micro steps: grad_cache.py computes their gradients. Where all negatives
of a clip are in its own micro step, one forward pass is enough; otherwise a pass without gradient computes the
embeddings first."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tgm_scale.assembly.joint_module import JointOutput, MaskSampling
from tgm_scale.contracts import Batch, BatchLayout, Mask
from tgm_scale.engine.build import make_update
from tgm_scale.objectives.term import MASKS, TARGETS
from tgm_scale.objectives.terms import Objective, column
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training import data_digest
from tgm_scale.training.grad_cache import EmbeddedBatch, GradCache
from tgm_scale.training.task import StepResult

_DIGEST = "digest"


@dataclass
class PreparedBatch:
    """A micro batch on the device with its mask and caption embeddings."""

    batch: Batch
    mask: Mask | None  # None: a learned mask, drawn by the module
    text_BE: Tensor | None
    caption_ids_B: Tensor
    hashes_B: Tensor  # int64, one per clip, of all but its mask (data_digest.clip_hashes)
    features_BNF: Tensor | None = None  # of the frozen image tower, for the terms that need them
    heads_BASRC: Tensor | None = None  # attention of the tower's heads, for a mask learned from it

    @property
    def sampling(self) -> MaskSampling:
        return MaskSampling(self.batch.seeds, self.heads_BASRC)


class JointStep:
    """Global optimiser steps on an engine. Every call is collective."""

    def __init__(self, engine: Any, process: ProcessInfo, layout: BatchLayout, objective: Objective):
        self.engine, self.process, self.accumulation = engine, process, layout.accumulation
        self.objective, self.coupled = objective, objective.coupled
        self.decodes, self.learned_mask = TARGETS in objective.needs, MASKS in objective.needs
        self.group = objective.contrastive_batch or layout.global_batch
        self.one_pass = (layout.micro_batch * process.world_size) % self.group == 0

    def __call__(self, micro: list[PreparedBatch], valid: float, limit: float = math.inf) -> StepResult:
        """Make one update, or none where the loss exceeds `limit` or any value is not finite: weights and moments then
        stay unchanged.

        `valid` is the number of unbroken clips in the global batch."""
        assert len(micro) == self.accumulation
        whole = max(valid, 1.0)
        cache = GradCache(self.coupled, self.process, self.accumulation, self.group, whole)
        masks = [part.mask for part in micro]
        if self.coupled and not self.one_pass:
            masks = self._first_pass(micro, cache)
        errors_T = torch.zeros(len(self.objective.clip), dtype=torch.float64, device=self.process.device)
        learned: dict[str, Tensor] = {}
        for index, part in enumerate(micro):
            output, masks[index] = self._pass(part, masks[index])
            loss = self._of_clips(output.errors_TB, part.batch.weight, whole, errors_T)
            if self.coupled:
                learned = self._by_term(output.learned)
                if self.one_pass:
                    cache.add([_embedded(part, output)], learned)
                assert output.embedding_BE is not None
                surrogates = cache.surrogates(index, output.embedding_BE, part.batch.weight, learned)
                for name, surrogate in surrogates.items():
                    loss = loss + self.objective.weights[name] * surrogate
            self.engine.backward(loss)
            if index < self.accumulation - 1:
                self.engine.step()  # counts the micro step, updates nothing
        digest = self._digest(micro, masks)
        metrics = self._metrics(errors_T, digest, cache.metrics(learned))
        columns = {name: column(name) for name in self.objective.weights}
        terms = [weight * metrics[columns[name]] for name, weight in self.objective.weights.items()]
        outcome = make_update(self.engine, torch.stack([*metrics.values()]), reduce(operator.add, terms), limit)
        cache.observe(int(valid))
        values = dict(zip(metrics, outcome.metrics, strict=True))
        return StepResult(outcome.loss, outcome.grad_norm, outcome.refusal, values.pop(_DIGEST), values)

    def _pass(
        self, part: PreparedBatch, mask: Mask | None, embed_only: bool = False
    ) -> tuple[JointOutput, Mask | None]:
        """Run one pass through the engine. Returns output and mask used. With `embed_only` nothing is decoded."""
        batch, features = part.batch, None if embed_only else part.features_BNF
        if self.learned_mask:
            given = (None, None) if mask is None else (mask.visible, mask.target)
            output = self.engine(batch.video, *given, features, embed_only=embed_only, sampling=part.sampling)
            return output, Mask(output.visible_BV, output.target_BM)
        assert mask is not None
        target = mask.target if self.decodes and not embed_only else None
        return self.engine(batch.video, mask.visible, target, features, embed_only=embed_only), mask

    def _digest(self, micro: list[PreparedBatch], masks: list[Mask | None]) -> Tensor:
        """Return a digest of clips, captions, crops and masks: a float64 scalar, a whole number below 2**53."""
        sums = [data_digest.with_masks(part.hashes_B, mask) for part, mask in zip(micro, masks) if mask is not None]
        return data_digest.of_rank(sums)

    def _of_clips(self, errors_TB: Tensor | None, weight_B: Tensor, whole: float, errors_T: Tensor) -> Tensor:
        """Return the clip terms' part of a micro step's loss, and add their means to `errors_T`."""
        loss = torch.zeros((), device=self.process.device)
        for index, name in enumerate(self.objective.clip):
            assert errors_TB is not None
            # not a product: a broken clip's error may be anything
            error = torch.where(weight_B > 0, errors_TB[index], 0.0).sum() / whole
            errors_T[index] += error.detach()
            # for a sum over the global batch: the engine takes means over ranks and micro steps
            factor = self.objective.weights[name] * self.process.world_size * self.accumulation
            loss = loss + factor * error
        return loss

    def _by_term(self, numbers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return the learned parameters by coupled term, for the terms that have any."""
        return dict(zip((name for name, term in self.coupled.items() if term.initial_values), numbers, strict=True))

    def _first_pass(self, micro: list[PreparedBatch], cache: GradCache) -> list[Mask | None]:
        """Embed the whole global batch without gradient. Returns the masks."""
        with torch.no_grad():
            outputs, masks = zip(*[self._pass(part, part.mask, embed_only=True) for part in micro], strict=True)
        cache.add([_embedded(*one) for one in zip(micro, outputs, strict=True)], self._by_term(outputs[0].learned))
        return list(masks)

    def _metrics(self, errors_T: Tensor, digest: Tensor, coupled: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return metrics by column, float64 scalars on the device, equal on every rank: clip terms and digest are
        summed over the ranks; those of the coupled terms are equal on all ranks already, and are taken from rank 0."""
        own = {column(name): error for name, error in zip(self.objective.clip, errors_T)}
        own[_DIGEST] = digest
        own |= coupled
        metrics_M = torch.stack([value.double() for value in own.values()])
        if self.process.world_size > 1:
            if not self.process.is_main:
                metrics_M[len(errors_T) + 1 :] = 0.0
            dist.all_reduce(metrics_M)
        return dict(zip(own, metrics_M, strict=True))


def _embedded(part: PreparedBatch, output: JointOutput) -> EmbeddedBatch:
    assert output.embedding_BE is not None and part.text_BE is not None
    return EmbeddedBatch(part.batch, output.embedding_BE.detach(), part.text_BE, part.caption_ids_B)
