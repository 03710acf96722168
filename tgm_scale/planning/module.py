"""Model and terms of the objective in one module for the engine.

Shapes: B clips, E embedding width, V visible, M targets, N tokens, F width of the tower's features, T clip terms,
L learned numbers of a coupled term.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import initial_value
from tgm_scale.objectives.term import PIXELS, Seen
from tgm_scale.objectives.terms import Objective

NormaliseBy = Literal["patch", "clip"]


class Passed(NamedTuple):
    """What one pass gives, in fp32; a NamedTuple, since ZeRO-3's hooks look for tensors in tuples."""

    errors_TB: Tensor | None  # of the clip terms, in the objective's order; None without any, or of embeddings alone
    embedding_BE: Tensor | None  # None for a model without a projection
    learned: tuple[Tensor, ...]  # [L] of each coupled term that learns some, in the objective's order


class JointModule(nn.Module):
    """The masked autoencoder with all that the objective's terms learn beside it, under `terms.NAME`.

    One number keeps the name that it had before there was a table: `log_scale`, the contrast's."""

    def __init__(self, model: MaskedVideoAutoencoder, objective: Objective, seed: int = 0):
        """seed: of the terms' first weights, which are keyed by name."""
        super().__init__()
        self.model = model
        self.pixels = PIXELS in objective.needs
        self.of_clip = tuple(objective.clip)
        self.learning = tuple(name for name, term in objective.coupled.items() if term.learned is not None)
        contrast = objective.coupled.get("contrast")
        self.log_scale = None if contrast is None else contrast.learned
        built: dict[str, nn.Module] = {**objective.clip, **objective.coupled}
        self.terms = nn.ModuleDict({name: term for name, term in built.items() if name != "contrast"})
        for name, term in objective.clip.items():
            _initialise(term, f"terms.{name}", seed)

    def forward(
        self,
        video_BCTHW: Tensor,
        visible_BV: Tensor,
        target_BM: Tensor | None,
        features_BNF: Tensor | None = None,
        embed_only: bool = False,
    ) -> Passed:
        """features: of the frozen image tower, for the terms that need them. embed_only: leave the clip terms out."""
        output = self.model(video_BCTHW, visible_BV, target_BM, self.pixels)
        errors_TB = None
        if self.of_clip and not embed_only:
            seen = Seen(
                video_BCTHW,
                visible_BV,
                target_BM,
                output.tokens_BVD,
                output.decoded_BMK,
                output.prediction_BMP,
                output.target_BMP,
                features_BNF,
            )
            errors_TB = torch.stack([self.terms[name](seen) for name in self.of_clip])
        learned = tuple(self._learned(name) for name in self.learning)
        return Passed(errors_TB, output.embedding_BE, learned)

    def _learned(self, name: str) -> Tensor:
        if name != "contrast":
            found: Tensor = self.terms[name]()
            return found
        assert self.log_scale is not None
        # times one: a parameter that leaves the module itself would be partitioned under the loss at ZeRO-3
        return self.log_scale.float() * 1.0


@torch.no_grad()
def _initialise(term: nn.Module, prefix: str, seed: int) -> None:
    """Matrices and biases keyed by seed and name, whatever was built before; other parameters stay as they are."""
    for name, parameter in term.named_parameters():
        if not parameter.is_meta and (parameter.ndim > 1 or name.endswith("bias")):
            parameter.copy_(initial_value(f"{prefix}.{name}", tuple(parameter.shape), seed))
