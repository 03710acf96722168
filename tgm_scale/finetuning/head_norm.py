"""BatchNorm without weights before the classifier's head, with the statistics of the whole global batch.

If most tokens of a clip are background, the mean token is nearly the same for every clip, and a linear head on it
learns slowly. MAE (He et al. 2022, appendix A.1) puts a BatchNorm without affine parameters before the head of its
linear probe. Statistics of a micro batch would make losses depend on how a batch is split. So a pass without gradient
computes the pooled features of the global batch, and from them its statistics and the gradient through these; both are
constants in the usual pass (as in GradCache, arXiv 2101.06983), and no collective needs a backward. For tests the
statistics are averaged over steps.

Shapes: G clips of the global batch, B of a micro batch, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tgm_scale.engine.state import whole_weights
from tgm_scale.models.classifier import HeadNorm

DECAY = 0.9  # of the averages for tests: equals torch's BatchNorm with momentum 0.1


class Inputs(NamedTuple):
    """A micro batch on the device: pixels, soft targets [B, C], seeds of the clips, weights (0: not usable)."""

    video: Tensor
    targets_BC: Tensor
    seeds_B: Tensor
    weight_B: Tensor


class GlobalNorm(NamedTuple):
    """Norm of one global batch: the statistics, and the gradient of the loss through them.

    norm: mean and scale. gradient: means over clips of the loss's gradient at the normalised features, alone and times
    these features."""

    norm_2D: Tensor
    gradient_2D: Tensor

    def surrogate(self, features_BD: Tensor, weight_B: Tensor) -> Tensor:
        """Return a term for the part of the loss's gradient through the statistics. Its value means nothing."""
        mean_D, scale_D = self.norm_2D
        first_D, second_D = self.gradient_2D
        used_BD = torch.where(weight_B[:, None] > 0, features_BD.float(), 0.0)
        replay_BD = -scale_D * (first_D + (used_BD.detach() - mean_D) * scale_D * second_D)
        return (used_BD * replay_BD).sum()


class BatchStatistics:
    """Statistics of the features before the head: of a global batch, and averaged over steps. Calls are collective.

    average: decay of the averages that go with averaged weights (`finetune.ema`)."""

    def __init__(self, engine: Any, device: torch.device, average: float | None) -> None:
        self._engine = engine
        self.norm = HeadNorm.begin(engine.module.size.width, device)
        self.averaged = None if average is None else self.norm
        self._decay = average
        self._newest_2D: Tensor | None = None

    def of_batch(self, micro: Iterable[Inputs], valid: float) -> GlobalNorm:
        """Return the norm of the global batch, given this rank's micro batches. valid: its clips with weight."""
        valid = max(valid, 1.0)
        features, targets, weights = [], [], []
        with torch.no_grad():
            for part in micro:
                found_BD = self._engine(part.video, part.seeds_B, self.norm.identity())[1]
                features.append(torch.where(part.weight_B[:, None] > 0, found_BD.double(), 0.0))
                targets.append(part.targets_BC.double())
                weights.append(part.weight_B > 0)
        features_GD, used_G1 = torch.cat(features), torch.cat(weights)[:, None]
        averages_2D = summed(torch.stack([features_GD.sum(0), features_GD.square().sum(0)])) / valid
        head = self._engine.module.head
        with whole_weights(self._engine, [head.weight, head.bias]), torch.no_grad():
            gradient_2D = statistics_gradient(
                features_GD, used_G1, torch.cat(targets), HeadNorm(averages_2D, 1.0), head, valid
            )
        self._newest_2D = averages_2D
        return GlobalNorm(HeadNorm(averages_2D, 1.0).mean_and_scale(), gradient_2D.float())

    def accept(self) -> None:
        """Add the batch's statistics to the averages, once the update is made."""
        assert self._newest_2D is not None
        self.norm = self.norm.updated(self._newest_2D, DECAY)
        if self.averaged is not None and self._decay is not None:
            self.averaged = self.averaged.updated(self._newest_2D, self._decay)

    def state(self) -> dict[str, Any]:
        """Return the state for the manifest of a checkpoint."""
        found = {"last": self.norm.state()}
        return found if self.averaged is None else found | {"averaged": self.averaged.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.norm = HeadNorm.of_state(state["last"], self.norm.averages_2D.device)
        if self.averaged is not None:
            self.averaged = HeadNorm.of_state(state["averaged"], self.norm.averages_2D.device)


def statistics_gradient(
    features_GD: Tensor, used_G1: Tensor, targets_GC: Tensor, norm: HeadNorm, head: Any, valid: float
) -> Tensor:
    """Return the gradient of `GlobalNorm`, [2, D], of mean cross entropy over all ranks' `valid` clips. Collective."""
    mean_D, scale_D = norm.mean_and_scale().double()
    normal_GD = (features_GD - mean_D) * scale_D
    weight_CD = head.weight.double()
    scores_GC = normal_GD @ weight_CD.T + head.bias.double()
    gradient_GD = torch.where(used_G1, scores_GC.softmax(1) - targets_GC, 0.0) @ weight_CD / valid
    return summed(torch.stack([gradient_GD.sum(0), (gradient_GD * normal_GD).sum(0)])) / valid


def summed(of_rank: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(of_rank)
    return of_rank
