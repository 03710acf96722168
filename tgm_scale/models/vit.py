"""The vision transformer of masked video pretraining: sizes, blocks, encoder, decoder, initialisation.

Shapes: B clips, N tokens, V visible tokens, M target tokens, D width, P values of a patch (see patches.py).
Layout, names and dimensions are those of VideoMAE (Tong et al. 2022) and VideoMAE V2 (Wang et al. 2023): pre-norm
blocks, LayerNorm eps 1e-6, fixed positions, no class token, no dropout and no drop path in pretraining.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tgm_scale.contracts import Grid
from tgm_scale.models.attention import Attention, Backend, CrossAttention
from tgm_scale.models.patches import CHANNELS, IMAGENET, PatchEmbed, PixelStatistics, Positions
from tgm_scale.runtime import seeding

NORM_EPS = 1e-6


@dataclass(frozen=True)
class ModelSize:
    """The dimensions of a model; widths in features, `patch` in pixels, `tubelet` in frames.

    decoder_attention: what the decoder's blocks attend to, see `Decoder`."""

    width: int
    depth: int
    heads: int
    mlp: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_mlp: int
    patch: int = 16
    tubelet: int = 2
    decoder_attention: Literal["self", "cross"] = "self"

    @property
    def patch_values(self) -> int:
        return CHANNELS * self.tubelet * self.patch**2

    def without_decoder(self) -> ModelSize:
        """Return the encoder's dimensions, with zeros for the decoder's."""
        none = {"decoder_width": 0, "decoder_depth": 0, "decoder_heads": 0, "decoder_mlp": 0}
        return replace(self, **none, decoder_attention="self")


@dataclass(frozen=True)
class ModelOptions:
    """Options that the shapes of a model's weights do not reveal: no weight's name, shape or first value depends on
    them.

    activation_checkpointing: keep only each block's input and recompute the rest in the backward pass. statistics: by
    which the encoder normalises pixels. origin: the grid that the encoder was trained on, where it is another than its
    clips' (see `patches.interpolated_table`); not with a decoder. drop_path: share of clips for which the last block's
    branches are left out while a classifier is trained (stochastic depth, Huang et al. 2016), growing linearly from 0
    over the blocks. token_share: share of a clip's tokens that a classifier reads (see `patches.most_varied`)."""

    attention: Backend = "auto"
    activation_checkpointing: bool = False
    statistics: PixelStatistics = IMAGENET
    origin: Grid | None = None
    drop_path: float = 0.0
    token_share: float = 1.0


DEFAULT_OPTIONS = ModelOptions()

SIZES = {
    "tiny": ModelSize(128, 4, 4, 512, 64, 2, 2, 256, patch=8),  # ours: one million parameters, for CPUs and the demo
    "S": ModelSize(384, 12, 6, 1536, 192, 4, 3, 768),
    "B": ModelSize(768, 12, 12, 3072, 384, 4, 6, 1536),
    "L": ModelSize(1024, 24, 16, 4096, 512, 4, 8, 2048),  # VideoMAE's own L and H recipes: decoder_depth 12
    "H": ModelSize(1280, 32, 16, 5120, 640, 4, 8, 2560),
    "g": ModelSize(1408, 40, 16, 6144, 512, 4, 8, 2234, patch=14),  # VideoMAE V2; mlp ratio 48/11 on both sides
}


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Transformer block: x + attention(norm(x)), then x + mlp(norm(x)): [B, N, D] -> [B, N, D].

    scale_B2: factors of the two branches, clip by clip (drop path in finetuning); None: both are added whole."""

    def __init__(self, width: int, heads: int, hidden: int, attention: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads, attention)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, scale_B2: Tensor | None = None) -> Tensor:
        if scale_B2 is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        attention_B11, mlp_B11 = scale_B2[:, :, None, None].unbind(1)
        x = x + attention_B11 * self.attn(self.norm1(x))
        return x + mlp_B11 * self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Transformer block with cross-attention: x + attention(norm(x), context), then x + mlp(norm(x)). A token sees the
    context, and no other token of x.

    x: [B, M, D], context: [B, V, D], normalised; returns [B, M, D]."""

    def __init__(self, width: int, heads: int, hidden: int, attention: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = CrossAttention(width, heads, attention)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x_BMD: Tensor, context_BVD: Tensor) -> Tensor:
        x_BMD = x_BMD + self.attn(self.norm1(x_BMD), context_BVD)
        return x_BMD + self.mlp(self.norm2(x_BMD))


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, activation_checkpointing: bool, second: Sequence[Tensor] | None = None
) -> Tensor:
    """Run the blocks in turn; with `activation_checkpointing` keep only each block's inputs for the backward pass.

    second: each block's input besides x: the factors of a `Block`'s branches, or a `CrossBlock`'s context."""
    for i, block in enumerate(blocks):
        inputs = (x,) if second is None else (x, second[i])
        if activation_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing random in a block
        else:
            x = block(*inputs)
    return x


class Encoder(nn.Module):
    """Encoder: patches -> tokens, for any subset of the grid's tokens."""

    def __init__(self, size: ModelSize, grid: Grid, options: ModelOptions) -> None:
        super().__init__()
        self.activation_checkpointing = options.activation_checkpointing
        self.patch_embed = PatchEmbed(size.width, size.tubelet, size.patch, options.statistics)
        self.positions = Positions(grid, size.width, options.origin)
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, size.mlp, options.attention) for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPS)

    def forward(self, patches_BVP: Tensor, index_BV: Tensor | None) -> Tensor:
        """Return tokens after the norm, [B, V, D]. patches_BVP: those at `index_BV` (None: all, in order), 0..255."""
        x = self.patch_embed(patches_BVP)
        # not a weight's dtype: reading another module's weight makes ZeRO-3 gather it for this one, and fail
        # ("tracing error") where it did not do so when it recorded the order
        x = self.positions(x, index_BV, dtype=x.dtype)
        return self.norm(run_blocks(self.blocks, x, self.activation_checkpointing))


class Decoder(nn.Module):
    """Decoder: visible and target tokens of its width -> the targets' tokens, from which `head` makes their pixels.

    "self": blocks over visible and target tokens together, as in VideoMAE. "cross": the targets alone go through the
    blocks, and each attends to the visible tokens and to no target, itself included (CrossMAE, Fu et al. 2024, arXiv
    2401.14391). All blocks read one output, the encoder's last, through one norm: the paper's simple form. Its other
    form, in which each block reads a learned sum of several encoder layers' outputs, is not implemented."""

    def __init__(self, size: ModelSize, options: ModelOptions) -> None:
        super().__init__()
        self.activation_checkpointing = options.activation_checkpointing
        cross = size.decoder_attention == "cross"
        self.context_norm = nn.LayerNorm(size.decoder_width, eps=NORM_EPS) if cross else None
        kind = CrossBlock if cross else Block
        self.blocks = nn.ModuleList(
            kind(size.decoder_width, size.decoder_heads, size.decoder_mlp, options.attention)
            for _ in range(size.decoder_depth)
        )
        self.norm = nn.LayerNorm(size.decoder_width, eps=NORM_EPS)
        self.head = nn.Linear(size.decoder_width, size.patch_values)

    def forward(self, visible_BVD: Tensor, target_BMD: Tensor) -> Tensor:
        """Return the targets' tokens after the norm, [B, M, D], for a head. Both inputs have their positions added."""
        if self.context_norm is None:
            x_BND = torch.cat([visible_BVD, target_BMD], dim=1)
            x_BMD = run_blocks(self.blocks, x_BND, self.activation_checkpointing)[:, -target_BMD.shape[1] :]
        else:
            context = [self.context_norm(visible_BVD)] * len(self.blocks)
            x_BMD = run_blocks(self.blocks, target_BMD, self.activation_checkpointing, context)
        return self.norm(x_BMD)


def initial_value(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the initial value of the parameter `name`: float32 on the CPU, a pure function of (name, shape, seed).

    As in VideoMAE: Xavier uniform for linear weights (q, k and v as one matrix), unit norms, zero biases; the patch
    embedding and `encoder_to_decoder` uniform within 1/sqrt(fan in); the mask token normal, std 0.02, cut there."""
    generator = seeding.generator(seed, "init", name)
    value = torch.zeros(shape, device="cpu")
    if name == "mask_token":
        return nn.init.trunc_normal_(value, std=0.02, a=-0.02, b=0.02, generator=generator)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
        return value.fill_(1.0)
    if name in ("encoder.patch_embed.proj.weight", "encoder_to_decoder.weight"):
        bound = math.prod(shape[1:]) ** -0.5
        return value.uniform_(-bound, bound, generator=generator)
    if name.endswith("bias"):
        return value
    return nn.init.xavier_uniform_(value, generator=generator)


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Give every parameter its `initial_value`, keyed by its name in `module`: construction order plays no part.

    Parameters on the meta device are left alone; call again after `to_empty`."""
    for name, parameter in module.named_parameters():
        if not parameter.is_meta:
            parameter.copy_(initial_value(name, tuple(parameter.shape), seed))
