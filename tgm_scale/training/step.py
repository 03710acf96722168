"""One optimiser step over a global batch: forward, joint objective, backward, update.

Shapes: A micro steps of accumulation, W ranks, B clips of one micro batch, E embedding width. The clip (a, r, b) has
place a * W * B + r * B + b in the global batch, whatever A, W and B are.

The contrastive term couples clips of other ranks and other micro steps. Its gradient with respect to each embedding is
computed once, on gathered and detached embeddings, and then replayed as the inner product <embedding, gradient>
(GradCache, arXiv 2101.06983). Where all negatives of a clip are in its own micro step one forward pass is enough;
otherwise a pass without gradient finds the embeddings first. No collective needs a backward.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tgm_scale.config.sections import ObjectiveConfig
from tgm_scale.contracts import Batch, BatchLayout, Mask
from tgm_scale.engine.update import make_update
from tgm_scale.objectives.contrastive import Negatives, bounded_log_scale, contrastive_gradients
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training.task import StepResult


@dataclass
class Prepared:
    """A micro batch on the device with its mask and caption embeddings."""

    batch: Batch
    mask: Mask
    text_BE: Tensor | None
    caption_ids_B: Tensor
    digest: Tensor  # float64 scalar, a whole number below 2**53: stands for clips, captions, crops and masks


@dataclass
class _Replay:
    """The contrastive term as one rank's micro step sees it: gradients to replay, scaled for the engine's mean."""

    video_BE: Tensor
    log_scale: Tensor
    loss: Tensor  # this micro step's part of the mean over the global batch
    accuracy: Tensor


class JointStep:
    """Runs global steps on an engine. Every call is collective."""

    def __init__(self, engine: Any, process: ProcessInfo, layout: BatchLayout, objective: ObjectiveConfig):
        self.engine, self.process, self.accumulation = engine, process, layout.accumulation
        self.reconstruction_weight = objective.reconstruction_weight
        self.contrastive_weight = objective.contrastive_weight
        self.contrastive_batch = objective.contrastive_batch or layout.global_batch
        self.one_pass = (layout.micro_batch * process.world_size) % self.contrastive_batch == 0

    def __call__(self, micro: list[Prepared], valid: float, limit: float = math.inf) -> StepResult:
        """One update, or none where the loss is above `limit` or anything is not finite: then weights and moments
        stay as they were.

        `valid` is the number of unbroken clips in the global batch."""
        assert len(micro) == self.accumulation
        valid = max(valid, 1.0)
        replays = self._first_pass(micro, valid) if self.contrastive_weight and not self.one_pass else []
        errors = torch.zeros((), dtype=torch.float64, device=self.process.device)
        log_scale = None
        for index, part in enumerate(micro):
            target = part.mask.target if self.reconstruction_weight else None
            error_B, embedding_BE, log_scale = self.engine(part.batch.video, part.mask.visible, target)
            loss = torch.zeros((), device=self.process.device)
            if self.reconstruction_weight:
                # not a product: a broken clip's error may be anything
                error = torch.where(part.batch.weight > 0, error_B, 0.0).sum() / valid
                errors += error.detach()
                # a sum over the global batch, where the engine takes means over ranks and micro steps
                loss = loss + self.reconstruction_weight * self.process.world_size * self.accumulation * error
            if self.contrastive_weight:
                if self.one_pass:
                    replays += self._replays([embedding_BE.detach()], [part], log_scale.detach(), valid)
                replay = replays[index]
                embedding_BE = torch.where(part.batch.weight[:, None] > 0, embedding_BE, 0.0)
                surrogate = (embedding_BE * replay.video_BE).sum() + (log_scale * replay.log_scale).sum()
                loss = loss + self.contrastive_weight * surrogate
            self.engine.backward(loss)
            if index < self.accumulation - 1:
                self.engine.step()  # counts the micro step, updates nothing
        metrics_5 = self._metrics(errors, micro, replays, log_scale)
        loss = self.reconstruction_weight * metrics_5[0] + self.contrastive_weight * metrics_5[2]
        outcome = make_update(self.engine, metrics_5, loss, limit)
        reconstruction, digest, contrastive, accuracy, temperature = outcome.metrics
        contrasted = self.contrastive_weight > 0
        return StepResult(
            outcome.loss,
            outcome.grad_norm,
            outcome.refusal,
            digest,
            reconstruction if self.reconstruction_weight else None,
            contrastive if contrasted else None,
            accuracy if contrasted else None,
            temperature if contrasted else None,
        )

    def _first_pass(self, micro: list[Prepared], valid: float) -> list[_Replay]:
        """Embeddings of the whole global batch without gradient, and from them the gradients to replay."""
        with torch.no_grad():
            outputs = [self.engine(part.batch.video, part.mask.visible, None) for part in micro]
        return self._replays([output[1] for output in outputs], micro, outputs[0][2], valid)

    def _replays(
        self, embeddings: list[Tensor], parts: list[Prepared], log_scale: Tensor, valid: float
    ) -> list[_Replay]:
        """The contrastive term over all ranks' clips of these K micro steps."""
        video_KBE = torch.stack(embeddings).float()
        text_KBE = torch.stack([part.text_BE for part in parts if part.text_BE is not None]).float()
        ids_KB3 = torch.stack(
            [torch.stack([part.caption_ids_B, part.batch.clip_ids, part.batch.weight.long()], dim=1) for part in parts]
        )
        width = video_KBE.shape[-1]
        vectors_GE2 = self._gather(torch.cat([video_KBE, text_KBE], dim=-1))
        ids_G3 = self._gather(ids_KB3)
        contrast, video_GE, log_scale_gradient = contrastive_gradients(
            vectors_GE2[:, :width],
            vectors_GE2[:, width:],
            log_scale,
            Negatives(ids_G3[:, 2].float(), ids_G3[:, 0], ids_G3[:, 1], self.contrastive_batch),
        )
        count, ranks = len(parts), self.process.world_size
        share = ids_G3[:, 2].sum() / valid  # of the global batch's valid clips, those gathered here
        own_KBE = video_GE.reshape(count, ranks, -1, width)[:, self.process.rank] * (ranks * self.accumulation * share)
        return [
            _Replay(
                own_BE,
                log_scale_gradient * (self.accumulation * share / count),
                contrast.loss * share / count,
                contrast.accuracy * share / count,
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
        self, errors: Tensor, micro: list[Prepared], replays: list[_Replay], log_scale: Tensor | None
    ) -> Tensor:
        """Float64 [5] on the device, the same on every rank: reconstruction error and digest, summed over the ranks,
        and contrastive loss, accuracy and temperature, which are equal on all ranks and are taken from rank 0."""
        own = [errors, torch.stack([part.digest for part in micro]).sum()]
        if replays and log_scale is not None and self.process.is_main:
            # one after another in fp32, as they came
            own.append(functools.reduce(torch.add, [replay.loss for replay in replays]))
            own.append(functools.reduce(torch.add, [replay.accuracy for replay in replays]))
            own.append(torch.exp(-bounded_log_scale(log_scale.detach())))
        metrics_5 = errors.new_zeros(5)
        metrics_5[: len(own)] = torch.stack([value.double() for value in own])
        if self.process.world_size > 1:
            dist.all_reduce(metrics_5)
        return metrics_5
