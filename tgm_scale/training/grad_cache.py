"""Cached gradients of the coupled terms (GradCache, Gao et al. 2021, arXiv 2101.06983).

A coupled term compares clips of all ranks and several micro steps. Its gradient with respect to each embedding is
computed once, on gathered and detached embeddings. Each micro step then back-propagates the inner product
<embedding, gradient>, so no collective needs a backward pass.

Shapes: K micro steps whose embeddings are compared together, W ranks, B clips of one micro batch, G clips of all ranks
and K micro steps, E embedding width, L learned parameters of a coupled term. The clip (a, r, b) has place
a * W * B + r * B + b in the global batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

from tgm_scale.contracts import Batch
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import CoupledTerm, EmbeddingPairs, gradients
from tgm_scale.objectives.terms import column
from tgm_scale.runtime.distributed import ProcessInfo


@dataclass
class EmbeddedBatch:
    """Embeddings of one micro batch of this rank."""

    batch: Batch
    video_BE: Tensor  # detached
    text_BE: Tensor
    caption_ids_B: Tensor


@dataclass
class _MicroStepGradients:
    """Gradients of one coupled term for one micro step of this rank, scaled for the engine's mean."""

    video_BE: Tensor
    learned_L: Tensor
    loss: Tensor  # this micro step's part of the mean over the global batch
    metrics: dict[str, Tensor]  # likewise


class GradCache:
    """Cached gradients of the coupled terms for one global batch. `add` is collective.

    accumulation: micro steps of the global batch. group: clips that are compared with each other. valid: clips of the
    global batch with weight above 0, at least 1."""

    def __init__(
        self, terms: Mapping[str, CoupledTerm], process: ProcessInfo, accumulation: int, group: int, valid: float
    ):
        self._terms, self._process = terms, process
        self._accumulation, self._group, self._valid = accumulation, group, valid
        self._micro_steps: list[dict[str, _MicroStepGradients]] = []
        self._text: list[Tensor] = []  # [G, E] of each call of `add`, in the order of the global batch
        self._weight: list[Tensor] = []  # [G]

    def add(self, parts: Sequence[EmbeddedBatch], learned: Mapping[str, Tensor]) -> None:
        """Compute the terms and their gradients over all ranks' clips of these micro steps.

        learned: the learned parameters of the terms that have any, [L] each."""
        pairs = self._gather_pairs(parts)
        self._text.append(pairs.text_GE)
        self._weight.append(pairs.negatives.weight_G)
        share = pairs.negatives.weight_G.long().sum() / self._valid  # of the global batch's valid clips
        of_terms = {name: self._gradients(name, pairs, learned, share, len(parts)) for name in self._terms}
        self._micro_steps += [
            {name: of_term[index] for name, of_term in of_terms.items()} for index in range(len(parts))
        ]

    def surrogates(
        self, index: int, video_BE: Tensor, weight_B: Tensor, learned: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return scalars of micro step `index`, by term, whose gradients equal those of the terms.

        video_BE: its embeddings with a graph; those of clips of weight 0 may hold anything."""
        video_BE = torch.where(weight_B[:, None] > 0, video_BE, 0.0)
        found = {}
        for name, cached in self._micro_steps[index].items():
            found[name] = (video_BE * cached.video_BE).sum()
            if name in learned:
                found[name] = found[name] + (learned[name] * cached.learned_L).sum()
        return found

    def metrics(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return scalars by column of metrics.jsonl, over all micro steps added; the same on every rank."""
        found: dict[str, Tensor] = {}
        for name, term in self._terms.items():
            of_term = [micro_step[name] for micro_step in self._micro_steps]
            # in the order of the micro steps and in fp32: the sum is the same at any world size
            found[column(name)] = reduce(torch.add, [cached.loss for cached in of_term])
            for metric in of_term[0].metrics:
                found[metric] = reduce(torch.add, [cached.metrics[metric] for cached in of_term])
            if name in learned:
                found |= term.learned_metrics(learned[name].detach())
        return found

    def observe(self, valid: int) -> None:
        """Pass the captions of the whole global batch to every term, after its step."""
        for term in self._terms.values():
            term.observe(torch.cat(self._text), torch.cat(self._weight), valid)

    def _gather_pairs(self, parts: Sequence[EmbeddedBatch]) -> EmbeddingPairs:
        video_KBE = torch.stack([part.video_BE for part in parts]).float()
        text_KBE = torch.stack([part.text_BE for part in parts]).float()
        ids_KB3 = torch.stack(
            [torch.stack([part.caption_ids_B, part.batch.clip_ids, part.batch.weight.long()], dim=1) for part in parts]
        )
        width = video_KBE.shape[-1]
        vectors_GE2 = self._gather(torch.cat([video_KBE, text_KBE], dim=-1))
        ids_G3 = self._gather(ids_KB3)
        negatives = Negatives(ids_G3[:, 2].float(), ids_G3[:, 0], ids_G3[:, 1], self._group)
        return EmbeddingPairs(vectors_GE2[:, :width], vectors_GE2[:, width:], negatives)

    def _gather(self, own_KBX: Tensor) -> Tensor:
        """Gather [K, B, X] of every rank into [K * W * B, X], in the order of the global batch."""
        ranks = self._process.world_size
        if ranks == 1:
            return own_KBX.flatten(0, 1)
        gathered = [torch.empty_like(own_KBX) for _ in range(ranks)]
        dist.all_gather(gathered, own_KBX.contiguous())
        return torch.stack(gathered, dim=1).flatten(0, 2)

    def _gradients(
        self, name: str, pairs: EmbeddingPairs, learned: Mapping[str, Tensor], share: Tensor, count: int
    ) -> list[_MicroStepGradients]:
        """Return one term's gradients by micro step. share: of the global batch's valid clips in `count` micro
        steps."""
        whole = gradients(self._terms[name], pairs, learned.get(name, pairs.video_GE.new_zeros(0)))
        ranks, width = self._process.world_size, pairs.video_GE.shape[-1]
        own_KBE = whole.video_GE.reshape(count, ranks, -1, width)[:, self._process.rank]
        own_KBE = own_KBE * (ranks * self._accumulation * share)
        return [
            _MicroStepGradients(
                own_BE,
                whole.learned_L * (self._accumulation * share / count),
                whole.coupled.loss * share / count,
                {metric: value * share / count for metric, value in whole.coupled.metrics.items()},
            )
            for own_BE in own_KBE
        ]
