"""One optimiser step over a global batch: forward, the terms of the objective, backward, update.

Shapes: A micro steps of accumulation, W ranks, B clips of one micro batch, G clips of all ranks and some micro steps,
N tokens of a clip, E embedding width, F width of the tower's features, T clip terms, L learned numbers of a coupled
term, M numbers that a step reports. The clip (a, r, b) has place a * W * B + r * B + b in the global batch, whatever
A, W and B are.

A coupled term is of clips of other ranks and other micro steps. Its gradient with respect to each embedding is
computed once, on gathered and detached embeddings, and then replayed as the inner product <embedding, gradient>
(GradCache, arXiv 2101.06983). Where all negatives of a clip are in its own micro step one forward pass is enough;
otherwise a pass without gradient finds the embeddings first. No collective needs a backward.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tgm_scale.contracts import Batch, BatchLayout, Mask
from tgm_scale.engine.build import make_update
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import MASKS, TARGETS, Pairs, gradients
from tgm_scale.objectives.terms import Objective, column
from tgm_scale.planning.module import Drawing, Passed
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training import data_digest
from tgm_scale.training.task import StepResult

_DIGEST = "digest"


@dataclass
class Prepared:
    """A micro batch on the device with its mask and caption embeddings."""

    batch: Batch
    mask: Mask | None  # None: a learned one, which the module draws
    text_BE: Tensor | None
    caption_ids_B: Tensor
    hashes_B: Tensor  # int64, of each clip's caption and crop (data_digest.clip_hashes)
    features_BNF: Tensor | None = None  # of the frozen image tower, for the terms that need them
    heads_BASRC: Tensor | None = None  # attention of its heads, for a mask that is learned from it

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.batch.seeds, self.heads_BASRC)


@dataclass
class _Replay:
    """A coupled term as one rank's micro step sees it: gradients to replay, scaled for the engine's mean."""

    video_BE: Tensor
    learned_L: Tensor
    loss: Tensor  # this micro step's part of the mean over the global batch
    figures: dict[str, Tensor]  # likewise


@dataclass
class _Gathered:
    """The captions of a step's clips, of all ranks, as they were gathered: in the order of the global batch."""

    text: list[Tensor] = field(default_factory=list)  # [G, E]
    weight: list[Tensor] = field(default_factory=list)  # [G]


class JointStep:
    """Runs global steps on an engine. Every call is collective."""

    def __init__(self, engine: Any, process: ProcessInfo, layout: BatchLayout, objective: Objective):
        self.engine, self.process, self.accumulation = engine, process, layout.accumulation
        self.objective, self.coupled = objective, objective.coupled
        self.decodes, self.learned_mask = TARGETS in objective.needs, MASKS in objective.needs
        self.group = objective.contrastive_batch or layout.global_batch
        self.one_pass = (layout.micro_batch * process.world_size) % self.group == 0

    def __call__(self, micro: list[Prepared], valid: float, limit: float = math.inf) -> StepResult:
        """One update, or none where the loss is above `limit` or anything is not finite: then weights and moments
        stay as they were.

        `valid` is the number of unbroken clips in the global batch."""
        assert len(micro) == self.accumulation
        whole, gathered = max(valid, 1.0), _Gathered()
        masks = [part.mask for part in micro]
        replays: list[dict[str, _Replay]] = []
        if self.coupled and not self.one_pass:
            masks, replays = self._first_pass(micro, whole, gathered)
        errors_T = torch.zeros(len(self.objective.clip), dtype=torch.float64, device=self.process.device)
        learned: dict[str, Tensor] = {}
        for index, part in enumerate(micro):
            passed, masks[index] = self._pass(part, masks[index])
            embedding_BE = passed.embedding_BE
            loss = self._of_clips(passed.errors_TB, part.batch.weight, whole, errors_T)
            if self.coupled:
                assert embedding_BE is not None
                learned = self._by_term(passed.learned)
                if self.one_pass:
                    replays += self._replays([embedding_BE.detach()], [part], learned, whole, gathered)
                embedding_BE = torch.where(part.batch.weight[:, None] > 0, embedding_BE, 0.0)
                for name, replay in replays[index].items():
                    surrogate = (embedding_BE * replay.video_BE).sum()
                    if name in learned:
                        surrogate = surrogate + (learned[name] * replay.learned_L).sum()
                    loss = loss + self.objective.weights[name] * surrogate
            self.engine.backward(loss)
            if index < self.accumulation - 1:
                self.engine.step()  # counts the micro step, updates nothing
        digest = self._digest(micro, masks)
        metrics = self._metrics(errors_T, digest, replays, learned)
        columns = {name: column(name) for name in self.objective.weights}
        terms = [weight * metrics[columns[name]] for name, weight in self.objective.weights.items()]
        outcome = make_update(self.engine, torch.stack([*metrics.values()]), reduce(operator.add, terms), limit)
        for term in self.coupled.values():
            term.observe(torch.cat(gathered.text), torch.cat(gathered.weight), int(valid))
        figures = dict(zip(metrics, outcome.metrics, strict=True))
        return StepResult(outcome.loss, outcome.grad_norm, outcome.refusal, figures.pop(_DIGEST), figures)

    def _pass(self, part: Prepared, mask: Mask | None, embed_only: bool = False) -> tuple[Passed, Mask | None]:
        """Through the engine, and the mask that was used. Where only embeddings are wanted nothing is decoded."""
        batch, features = part.batch, None if embed_only else part.features_BNF
        if self.learned_mask:
            given = (None, None) if mask is None else (mask.visible, mask.target)
            passed = self.engine(batch.video, *given, features, embed_only=embed_only, drawing=part.drawing)
            return passed, Mask(passed.visible_BV, passed.target_BM)
        assert mask is not None
        target = mask.target if self.decodes and not embed_only else None
        return self.engine(batch.video, mask.visible, target, features, embed_only=embed_only), mask

    def _digest(self, micro: list[Prepared], masks: list[Mask | None]) -> Tensor:
        """Float64 scalar, a whole number below 2**53: stands for clips, captions, crops and masks."""
        sums = [data_digest.with_masks(part.hashes_B, mask) for part, mask in zip(micro, masks) if mask is not None]
        return data_digest.of_rank(sums)

    def _of_clips(self, errors_TB: Tensor | None, weight_B: Tensor, whole: float, errors_T: Tensor) -> Tensor:
        """The clip terms' part of a micro step's loss; their means are added to `errors_T`."""
        loss = torch.zeros((), device=self.process.device)
        for index, name in enumerate(self.objective.clip):
            assert errors_TB is not None
            # not a product: a broken clip's error may be anything
            error = torch.where(weight_B > 0, errors_TB[index], 0.0).sum() / whole
            errors_T[index] += error.detach()
            # a sum over the global batch, where the engine takes means over ranks and micro steps
            factor = self.objective.weights[name] * self.process.world_size * self.accumulation
            loss = loss + factor * error
        return loss

    def _by_term(self, numbers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The learned numbers of the coupled terms that have some."""
        return dict(zip((name for name, term in self.coupled.items() if term.first), numbers, strict=True))

    def _first_pass(
        self, micro: list[Prepared], whole: float, gathered: _Gathered
    ) -> tuple[list[Mask | None], list[dict[str, _Replay]]]:
        """Embeddings of the whole global batch without gradient: the masks, and the gradients to replay."""
        with torch.no_grad():
            outputs, masks = zip(*[self._pass(part, part.mask, embed_only=True) for part in micro], strict=True)
        learned = self._by_term(outputs[0].learned)
        embeddings = [output.embedding_BE for output in outputs]
        return list(masks), self._replays(embeddings, micro, learned, whole, gathered)

    def _replays(
        self,
        embeddings: list[Tensor],
        parts: list[Prepared],
        learned: dict[str, Tensor],
        whole: float,
        gathered: _Gathered,
    ) -> list[dict[str, _Replay]]:
        """The coupled terms over all ranks' clips of these K micro steps, by name for each of them."""
        video_KBE = torch.stack(embeddings).float()
        text_KBE = torch.stack([part.text_BE for part in parts if part.text_BE is not None]).float()
        ids_KB3 = torch.stack(
            [torch.stack([part.caption_ids_B, part.batch.clip_ids, part.batch.weight.long()], dim=1) for part in parts]
        )
        width = video_KBE.shape[-1]
        vectors_GE2 = self._gather(torch.cat([video_KBE, text_KBE], dim=-1))
        ids_G3 = self._gather(ids_KB3)
        negatives = Negatives(ids_G3[:, 2].float(), ids_G3[:, 0], ids_G3[:, 1], self.group)
        pairs = Pairs(vectors_GE2[:, :width], vectors_GE2[:, width:], negatives)
        gathered.text.append(pairs.text_GE)
        gathered.weight.append(negatives.weight_G)
        share = ids_G3[:, 2].sum() / whole  # of the global batch's valid clips, those gathered here
        of_terms = {name: self._replay(name, pairs, learned, share, len(parts)) for name in self.coupled}
        return [{name: of_term[index] for name, of_term in of_terms.items()} for index in range(len(parts))]

    def _replay(self, name: str, pairs: Pairs, learned: dict[str, Tensor], share: Tensor, count: int) -> list[_Replay]:
        """A term over the clips of `count` micro steps, which are this share of the global batch's valid ones."""
        found = gradients(self.coupled[name], pairs, learned.get(name, pairs.video_GE.new_zeros(0)))
        ranks, width = self.process.world_size, pairs.video_GE.shape[-1]
        own_KBE = found.video_GE.reshape(count, ranks, -1, width)[:, self.process.rank]
        own_KBE = own_KBE * (ranks * self.accumulation * share)
        return [
            _Replay(
                own_BE,
                found.learned_L * (self.accumulation * share / count),
                found.coupled.loss * share / count,
                {figure: value * share / count for figure, value in found.coupled.figures.items()},
            )
            for own_BE in own_KBE
        ]

    def _gather(self, own_KBX: Tensor) -> Tensor:
        """[K, B, X] of every rank as [K * W * B, X], in the order of the global batch."""
        ranks = self.process.world_size
        if ranks == 1:
            return own_KBX.flatten(0, 1)
        gathered = [torch.empty_like(own_KBX) for _ in range(ranks)]
        dist.all_gather(gathered, own_KBX.contiguous())
        return torch.stack(gathered, dim=1).flatten(0, 2)

    def _metrics(
        self,
        errors_T: Tensor,
        digest: Tensor,
        replays: list[dict[str, _Replay]],
        learned: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Float64 scalars on the device by column, the same on every rank: the clip terms and the digest, summed over
        the ranks, and what is of the coupled terms, which is equal on all ranks and is taken from rank 0."""
        own = {column(name): error for name, error in zip(self.objective.clip, errors_T)}
        own[_DIGEST] = digest
        for name, term in self.coupled.items():
            # one after another in fp32, as they came
            own[column(name)] = reduce(torch.add, [replay[name].loss for replay in replays])
            for figure in replays[0][name].figures:
                own[figure] = reduce(torch.add, [replay[name].figures[figure] for replay in replays])
            if name in learned:
                own |= term.figures_of(learned[name].detach())
        metrics_M = torch.stack([value.double() for value in own.values()])
        if self.process.world_size > 1:
            if not self.process.is_main:
                metrics_M[len(errors_T) + 1 :] = 0.0
            dist.all_reduce(metrics_M)
        return dict(zip(own, metrics_M, strict=True))
