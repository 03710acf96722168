"""Model, terms of the objective and learned masks in one module for the engine.

Shapes: B clips, E embedding width, V visible, M targets, N tokens, F width of the tower's features, T clip terms, L
learned parameters of a coupled term, A heads, S slots, R rows, C columns of the token grid."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tgm_scale.contracts import Mask
from tgm_scale.masking.recipes import Masker
from tgm_scale.models.generator import Generator
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.sampler import Sampler
from tgm_scale.models.vit import initial_value
from tgm_scale.objectives.term import MASKS, PIXELS, ClipTermInputs
from tgm_scale.objectives.terms import Objective

NormaliseBy = Literal["patch", "clip"]


class MaskSampling(NamedTuple):
    """Inputs from which a learned mask is drawn."""

    seeds_B: Tensor  # int64, one of each sample
    heads_BASRC: Tensor | None = None  # attention of a frozen tower's heads, for a mask learned from it


class JointOutput(NamedTuple):
    """Outputs of one pass, in fp32; a NamedTuple, since ZeRO-3's hooks look for tensors in tuples."""

    errors_TB: Tensor | None  # of the clip terms, in the objective's order; None without any, or with embed_only
    embedding_BE: Tensor | None  # None for a model without a projection
    learned: tuple[Tensor, ...]  # [L] of each coupled term that has any, in the objective's order
    visible_BV: Tensor  # int64, visible tokens: they and the targets are those given, or a learned mask's
    target_BM: Tensor | None


class JointModule(nn.Module):
    """Masked autoencoder with all that the objective's terms learn, under `terms.NAME`, and what a learned mask
    learns, under `masks.SOURCE`.

    One parameter keeps the name that it had before there was a table of terms: `log_scale`, the contrast's."""

    def __init__(
        self,
        model: MaskedVideoAutoencoder,
        objective: Objective,
        seed: int = 0,
        masker: Masker | None = None,
        heads: int = 0,
    ):
        """Build the module. seed: of the terms' initial weights, which are keyed by name. masker: of a learned mask;
        other masks are passed to `forward`. heads: of the frozen tower, for a mask learned from their attention."""
        super().__init__()
        self.model = model
        self.masker = masker if masker is not None and masker.learned else None
        assert (MASKS in objective.needs) == (self.masker is not None), "a learned mask and its term go together"
        self.masks = nn.ModuleDict()
        if self.masker is not None and self.masker.learned is not None:
            self.masks[self.masker.learned] = Generator(heads, seed) if heads else Sampler(model, seed)
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
        visible_BV: Tensor | None,
        target_BM: Tensor | None,
        features_BNF: Tensor | None = None,
        embed_only: bool = False,
        sampling: MaskSampling | None = None,
    ) -> JointOutput:
        """Run one pass over a micro batch. features: of the frozen image tower, for the terms that need them.
        embed_only: leave the clip terms out. sampling: of a learned mask; it is drawn if no visible tokens are
        given."""
        maps = {} if self.masker is None else self.maps(video_BCTHW, sampling)
        if visible_BV is None:
            mask = self._drawn(maps, sampling)
            visible_BV, target_BM = mask.visible, mask.target
        wanted_BM = None if embed_only else target_BM
        output = self.model(video_BCTHW, visible_BV, wanted_BM, self.pixels)
        errors_TB = log_probability_BM = None
        if self.of_clip and not embed_only:
            if self.masker is not None:
                assert sampling is not None and target_BM is not None
                log_probability_BN = self.masker.log_probability(sampling.seeds_B, **maps)
                log_probability_BM = log_probability_BN.gather(1, target_BM)
            seen = ClipTermInputs(
                video_BCTHW,
                visible_BV,
                target_BM,
                output.tokens_BVD,
                output.decoded_BMK,
                output.prediction_BMP,
                output.target_BMP,
                features_BNF,
                log_probability_BM,
            )
            errors_TB = torch.stack([self.terms[name](seen) for name in self.of_clip])
        learned = tuple(self._learned(name) for name in self.learning)
        return JointOutput(errors_TB, output.embedding_BE, learned, visible_BV, target_BM)

    def maps(self, video_BCTHW: Tensor, sampling: MaskSampling | None = None) -> dict[str, Tensor]:
        """Return the maps of a learned mask: its logits, float32 [B, S, R, C], under the name of its source, and under
        "heads" the attention that they are computed from, if any."""
        heads_BASRC = None if sampling is None else sampling.heads_BASRC
        [(name, learned)] = self.masks.items()
        if heads_BASRC is None:
            return {name: learned(self.model.embedded(video_BCTHW))}
        return {name: learned(heads_BASRC), "heads": heads_BASRC}

    @torch.no_grad()
    def draw(self, video_BCTHW: Tensor, sampling: MaskSampling) -> Mask:
        """Draw a learned mask for each clip, with the module's weights. Collective at ZeRO stage 3."""
        return self._drawn(self.maps(video_BCTHW, sampling), sampling)

    def _drawn(self, maps: dict[str, Tensor], sampling: MaskSampling | None) -> Mask:
        assert self.masker is not None and sampling is not None
        return self.masker(sampling.seeds_B, **{name: map_.detach() for name, map_ in maps.items()})

    def _learned(self, name: str) -> Tensor:
        if name != "contrast":
            found: Tensor = self.terms[name]()
            return found
        assert self.log_scale is not None
        # times one: a parameter that itself leaves the module would be partitioned at ZeRO-3 before the loss uses it
        return self.log_scale.float() * 1.0


@torch.no_grad()
def _initialise(term: nn.Module, prefix: str, seed: int) -> None:
    """Initialise matrices and biases, keyed by seed and name, whatever was built before; leave other parameters."""
    for name, parameter in term.named_parameters():
        if not parameter.is_meta and (parameter.ndim > 1 or name.endswith("bias")):
            parameter.copy_(initial_value(f"{prefix}.{name}", tuple(parameter.shape), seed))
