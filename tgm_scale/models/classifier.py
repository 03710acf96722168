"""VideoMAE's finetuning model (Tong et al. 2022): all tokens through the blocks, their mean, a norm, a linear head.

Shapes: B clips, C=3, T frames, H W pixels, N tokens of the grid, V that are read, D width, K classes, L blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tgm_scale.contracts import Grid, share_of
from tgm_scale.models.patches import PatchEmbed, Positions, gather_tokens, most_varied, patchify
from tgm_scale.models.vit import DEFAULT_OPTIONS, NORM_EPS, Block, ModelOptions, ModelSize, initial_value, run_blocks
from tgm_scale.runtime import seeding

HEAD_NORM = "head_norm"  # key of the statistics in a checkpoint's manifest

_HEAD_STD = 0.02
_HEAD_NORM_EPS = 1e-6  # as in MAE's linear probe


class HeadNorm(NamedTuple):
    """A norm without weights before the head, by averages over clips of the features and of their squares.

    averages: float64 [2, D]; their weights add up to `weight`. 0: no clip was seen yet, and nothing is changed."""

    averages_2D: Tensor
    weight: float

    @classmethod
    def begin(cls, width: int, device: torch.device) -> HeadNorm:
        return cls(torch.zeros(2, width, dtype=torch.float64, device=device), 0.0)

    @classmethod
    def of_state(cls, state: Mapping[str, Any], device: torch.device | None = None) -> HeadNorm:
        averages = torch.tensor([state["mean"], state["square"]], dtype=torch.float64, device=device)
        return cls(averages, state["weight"])

    def state(self) -> dict[str, Any]:
        mean, square = self.averages_2D.tolist()
        return {"mean": mean, "square": square, "weight": self.weight}

    def identity(self) -> Tensor:
        """Return the mean and scale that change nothing, float32 [2, D]."""
        changeless_2D = torch.zeros_like(self.averages_2D, dtype=torch.float32)
        changeless_2D[1] = 1
        return changeless_2D

    def mean_and_scale(self) -> Tensor:
        """Return float32 [2, D]: a feature f becomes (f - mean) * scale."""
        if not self.weight:
            return self.identity()
        mean_D, square_D = self.averages_2D / self.weight
        return torch.stack([mean_D, ((square_D - mean_D**2).clamp(min=0) + _HEAD_NORM_EPS).rsqrt()]).float()

    def updated(self, newest_2D: Tensor, decay: float) -> HeadNorm:
        """Return the averages with those of a further batch."""
        return HeadNorm(self.averages_2D.lerp(newest_2D, 1 - decay), self.weight + (1 - decay) * (1 - self.weight))


class VideoClassifier(nn.Module):
    """Classifier of clips: clip -> scores of classes. Weight names are those of VideoMAE's finetuned files.

    It lacks the encoder's own last norm: VideoMAE normalises after the mean (`fc_norm`). Initial values are keyed by
    name and `seed`, the encoder's equal to those of a `MaskedVideoAutoencoder` of this seed; the head's are normal,
    std 0.02.

    classes: 0 leaves the head out, and `forward` returns the pooled features. Raises ValueError where `frames` or
    `image_size` do not divide into the size's tubelets and patches."""

    def __init__(
        self,
        size: ModelSize,
        frames: int,
        image_size: int,
        classes: int,
        *,
        options: ModelOptions = DEFAULT_OPTIONS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.size = size
        self.drop_path = options.drop_path
        self.grid = Grid.of(frames, image_size, size.tubelet, size.patch)
        self.tokens = tokens_read(options.token_share, self.grid)
        self.activation_checkpointing = options.activation_checkpointing
        self.patch_embed = PatchEmbed(size.width, size.tubelet, size.patch, options.statistics)
        self.positions = Positions(self.grid, size.width, options.origin)
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, size.mlp, options.attention) for _ in range(size.depth)
        )
        self.fc_norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.head = nn.Linear(size.width, classes) if classes else nn.Identity()
        initialise(self, seed)

    def features(self, video_BCTHW: Tensor, seeds_B: Tensor | None = None) -> Tensor:
        """Return the normalised mean token, [B, D]. video: 0..255, uint8 (or float). seeds: int64, of training clips,
        for drop path: what is left out is a function of the clip's seed, whatever batch and process it is in."""
        patches = patchify(video_BCTHW, self.size.tubelet, self.size.patch)
        index_BV = None
        if self.tokens < self.grid.tokens:
            index_BV = most_varied(patches, self.tokens)
            patches = gather_tokens(patches, index_BV)
        x = self.patch_embed(patches)
        x = self.positions(x, index_BV, dtype=x.dtype)  # not a weight's dtype: see vit.Encoder
        scales = None
        if self.training and self.drop_path and seeds_B is not None:
            scales = self._drop_path_scales(seeds_B, x.dtype)
        return self.fc_norm(run_blocks(self.blocks, x, self.activation_checkpointing, scales).mean(1))

    def forward(
        self, video_BCTHW: Tensor, seeds_B: Tensor | None = None, norm_2D: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return scores before softmax, [B, K]; without a head the features, [B, D].

        norm: mean and scale by which the head's input is normalised; the features before it are then returned, too."""
        features_BD = self.features(video_BCTHW, seeds_B)
        if norm_2D is None:
            return self.head(features_BD)
        mean_D, scale_D = norm_2D
        return self.head(((features_BD.float() - mean_D) * scale_D).to(features_BD.dtype)), features_BD

    def _drop_path_scales(self, seeds_B: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Return the factors of each block's branches, clip by clip: L of [B, 2], 0 or 1 / the share that stays."""
        depth = len(self.blocks)
        drawn_BL2 = seeding.uniform(seeds_B, 2 * depth, "drop path").unflatten(1, (depth, 2))
        kept = [1 - self.drop_path * i / max(1, depth - 1) for i in range(depth)]
        return [((drawn_BL2[:, i] < share) / share).to(dtype) for i, share in enumerate(kept)]


def tokens_read(share: float, grid: Grid) -> int:
    """Return how many tokens a share of the grid holds, rounded down, at least 1."""
    return max(1, share_of(grid.tokens, share))


def without_head_norm(weights: Mapping[str, Tensor], manifest: Mapping[str, Any], averaged: bool) -> dict[str, Tensor]:
    """Return a checkpoint's weights with the norm before its head, if it has one, folded into the head: equal scores.

    averaged: whether the weights are the averaged ones, which have statistics of their own."""
    if (state := manifest.get(HEAD_NORM)) is None:
        return dict(weights)
    mean_D, scale_D = HeadNorm.of_state(state["averaged" if averaged else "last"]).mean_and_scale().double()
    head_KD = weights["head.weight"].double() * scale_D
    bias_K = weights["head.bias"].double() - head_KD @ mean_D
    dtype = weights["head.weight"].dtype
    return {**weights, "head.weight": head_KD.to(dtype), "head.bias": bias_K.to(dtype)}


@torch.no_grad()
def initialise(model: VideoClassifier, seed: int) -> None:
    """Give every parameter its initial value. Parameters on the meta device are left alone."""
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            parameter.copy_(_initial_value(name, tuple(parameter.shape), seed))


def _initial_value(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    if name == "head.weight":
        return torch.empty(shape, device="cpu").normal_(std=_HEAD_STD, generator=seeding.generator(seed, "init", name))
    return initial_value(name if name.startswith(("fc_norm", "head")) else f"encoder.{name}", shape, seed)
