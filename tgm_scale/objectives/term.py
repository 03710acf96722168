"""Definition of a term of the objective. The objective is a sum of terms by weight; `terms.py` has the table of them.

There are two kinds. A `ClipTerm` gives one number for each clip by itself: the objective takes its mean over the clips
of the global batch. A `CoupledTerm` gives one number for many clips' embeddings together: it is computed once on the
embeddings of all ranks, and its gradient is replayed (training/step.py).

Shapes: B clips of a micro batch, G of the global batch, V visible tokens, M targets, N tokens of the grid, D width of
the encoder, K of the decoder, P values of a patch, E width of the text embedding, F of the tower's patch features, L
learned parameters of a coupled term; C=3, T frames, H W pixels of a video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tgm_scale.models.vit import ModelSize
from tgm_scale.objectives.negatives import Negatives

# what a term may need; MASKS: the probabilities of a learned mask
TARGETS, PIXELS, FEATURES, CAPTIONS, MASKS = "targets", "pixels", "features", "captions", "masks"


@dataclass(frozen=True)
class TermSettings:
    """Settings from which a term builds its parts. features: width of the frozen image tower's patch features, text:
    of its captions' embeddings; 0 where no term of the run needs them."""

    size: ModelSize
    features: int = 0
    text: int = 0
    normalise_by: str = "patch"  # or "clip": objective.normalise_by
    queue: int = 4096  # objective.queue


class ClipTermInputs(NamedTuple):
    """Outputs of the model for a micro batch that its clip terms take; a NamedTuple, for ZeRO-3's hooks."""

    video_BCTHW: Tensor  # 0..255
    visible_BV: Tensor  # int64
    target_BM: Tensor | None  # int64; None, as the decoder's outputs and patches, unless a term needs TARGETS
    tokens_BVD: Tensor  # after the encoder's norm, of the model's dtype
    decoded_BMK: Tensor | None  # after the decoder's norm, of the model's dtype
    prediction_BMP: Tensor | None  # float32, order (frame, row, column, channel); with PIXELS
    patches_BMP: Tensor | None  # the targets', 0..255, order (channel, frame, row, column)
    features_BNF: Tensor | None  # float32, of all tokens in their order; with FEATURES
    log_probability_BM: Tensor | None = None  # float32, of the targets to be drawn, with a gradient; with MASKS


class ClipTerm(nn.Module):
    """A term with one number for each clip, whose mean over the clips of weight above 0 the objective takes.

    A subclass declares what it `needs`, and implements `forward`. A head that it learns is a module of its own, built
    from the `TermSettings`: it is trained, sharded and saved with the model, as terms.NAME.*, and left out of exports.
    column: of metrics.jsonl, if it is another than loss_NAME."""

    needs: ClassVar[frozenset[str]] = frozenset()
    column: ClassVar[str] = ""

    def __init__(self, settings: TermSettings) -> None:
        super().__init__()

    def forward(self, inputs: ClipTermInputs) -> Tensor:
        """Return float32 [B], one number for each clip, which depends on no other clip."""
        raise NotImplementedError


@dataclass(frozen=True)
class EmbeddingPairs:
    """Clips of the global batch from all ranks, in its order, with their captions and their negatives."""

    video_GE: Tensor  # float32, not normalised: the projection of the mean visible token
    text_GE: Tensor  # float32, of the frozen text tower
    negatives: Negatives


class CoupledOutput(NamedTuple):
    """Loss and metrics of a coupled term over some clips. metrics: scalars without a gradient, means over those clips
    of weight above 0."""

    loss: Tensor  # float32 scalar, a mean over the clips of weight above 0
    metrics: dict[str, Tensor]


class CoupledTerm(nn.Module):
    """A term computed from many clips' embeddings together.

    A subclass implements `loss`, and may have learned parameters with `initial_values`, and a state. Clips come in
    whole groups of `objective.contrastive_batch`. column: of the loss in metrics.jsonl, if it is another than
    loss_NAME; metric_names: further columns."""

    needs: ClassVar[frozenset[str]] = frozenset({CAPTIONS})
    column: ClassVar[str] = ""
    metric_names: ClassVar[tuple[str, ...]] = ()
    initial_values: ClassVar[tuple[float, ...]] = ()

    def __init__(self, settings: TermSettings) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.tensor(self.initial_values)) if self.initial_values else None

    def forward(self) -> Tensor:
        """Return the learned parameters as the loss takes them, float32 [L]."""
        assert self.learned is not None
        # times one: a parameter that itself leaves the module would be partitioned at ZeRO-3 before the loss uses it
        return self.learned.float() * 1.0

    def loss(self, pairs: EmbeddingPairs, learned_L: Tensor) -> CoupledOutput:
        """Return the loss and metrics in float32, regardless of autocast, differentiable with respect to
        `pairs.video_GE` and the learned parameters. Clips of weight 0 have no influence, whatever their embeddings
        hold; where all weights are 0 the loss is 0."""
        raise NotImplementedError

    def learned_metrics(self, learned_L: Tensor) -> dict[str, Tensor]:
        """Return metrics of the learned parameters alone, scalars."""
        return {}

    def observe(self, text_GE: Tensor, weight_G: Tensor, valid: int) -> None:
        """Receive the captions of a whole global batch, in its order, after its step; `valid` have weight above 0."""

    def state(self) -> dict[str, Tensor]:
        """Return what the term keeps from step to step, the same on every rank."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore a `state`. Raises ValueError where it is not one of this term."""


class Gradients(NamedTuple):
    """A coupled term's loss and metrics, without a graph, and the loss's gradients."""

    coupled: CoupledOutput
    video_GE: Tensor
    learned_L: Tensor


def gradients(term: CoupledTerm, pairs: EmbeddingPairs, learned_L: Tensor) -> Gradients:
    """Return a coupled term's loss and its gradients, for cached gradients (GradCache, Gao et al. 2021, arXiv
    2101.06983): embed all clips without a graph, take these gradients, then embed micro batch by micro batch with a
    graph and back-propagate `(embedding * gradient).sum()`.

    The text is frozen. Nothing is returned with a graph, whatever the caller's grad mode."""
    with torch.enable_grad():
        video = pairs.video_GE.detach().float().requires_grad_()
        learned = learned_L.detach().float().requires_grad_()
        found = term.loss(EmbeddingPairs(video, pairs.text_GE.detach(), pairs.negatives), learned)
        inputs = (video, learned) if learned.numel() else (video,)
        by_video, *by_learned = torch.autograd.grad(found.loss, inputs)
    coupled = CoupledOutput(found.loss.detach(), {name: value.detach() for name, value in found.metrics.items()})
    return Gradients(coupled, by_video, by_learned[0] if by_learned else torch.zeros_like(learned_L))
