"""Frozen image tower: frames to patch features in the joint embedding space with captions.

Shapes: N frames of H x W pixels, L tokens (patches, after CLIP's class token), D width of the tower, E of the joint
space, A attention heads, h x w patches.

Neither CLIP nor SigLIP was trained to align its patch tokens with the joint space; a scorer is a method to do so.

raw    the last block's tokens, unchanged. Known to respond to the background (CLIP Surgery, arXiv 2304.05653).
value  the last block with each token attending to itself alone, so that its value is not mixed with others'
       (MaskCLIP, arXiv 2112.01071: attention dropped, residual and MLP kept).
vv     a second path next to the last blocks: value-value attention (v v^T in place of q k^T), residual kept, MLP
       omitted (CLIP Surgery: "architecture surgery"), over the last 6 blocks, or half of a shallower tower.

Tokens then pass one by one through the layers that turn the class token (CLIP: norm and projection) or all tokens
(SigLIP: its attention pooling, attending to that one token: value and output projection, then its MLP) into the
picture's embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.guidance.preprocessing import Preprocessing

SURGERY_BLOCKS = 6


@dataclass(frozen=True)
class Trunk:
    """Components of an image tower, independent of its family."""

    embed: Callable[[Tensor], Tensor]  # pixels [N, 3, H, W] -> tokens [N, L, D]
    blocks: Sequence[Any]
    project: Callable[[Tensor], Tensor]  # tokens [..., D] -> the joint space [..., E], each separately
    pool: Callable[[Tensor], Tensor]  # tokens [N, L, D] -> the picture's embedding [N, E]
    attend: Callable[[Tensor], Tensor]  # tokens before the last block -> attention of the pooling token [N, L, A]
    heads: int  # their number A
    prefix: int  # tokens before the first patch
    image_size: int
    patch: int
    width: int


def clip_trunk(model: Any) -> Trunk:
    """Return the trunk of a CLIPVisionModelWithProjection."""
    vision, config = model.vision_model, model.config

    def project(x: Tensor) -> Tensor:
        return model.visual_projection(vision.post_layernorm(x))

    return Trunk(
        embed=lambda pixels: vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True)),
        blocks=vision.encoder.layers,
        project=project,
        pool=lambda x_NLD: project(x_NLD[:, 0]),
        attend=partial(_class_attention, vision.encoder.layers[-1]),
        heads=config.num_attention_heads,
        prefix=1,
        image_size=config.image_size,
        patch=config.patch_size,
        width=config.projection_dim,
    )


def siglip_trunk(model: Any) -> Trunk:
    """Return the trunk of a SiglipVisionModel with its pooling head."""
    head, config = model.head, model.config

    def project(x: Tensor) -> Tensor:
        attention = head.attention
        value = F.linear(
            model.post_layernorm(x), attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        )
        pooled = attention.out_proj(value)
        return pooled + head.mlp(head.layernorm(pooled))

    def attend(x_NLD: Tensor) -> Tensor:
        x_NLD = model.post_layernorm(_forward(model.encoder.layers[-1:], x_NLD))
        probe_N1D = head.probe.expand(len(x_NLD), -1, -1)
        of_heads_NA1L = head.attention(probe_N1D, x_NLD, x_NLD, need_weights=True, average_attn_weights=False)[1]
        return of_heads_NA1L[:, :, 0].transpose(1, 2)

    return Trunk(
        attend=attend,
        heads=config.num_attention_heads,
        embed=partial(model.embeddings, interpolate_pos_encoding=True),
        blocks=model.encoder.layers,
        project=project,
        pool=lambda x_NLD: head(model.post_layernorm(x_NLD)),
        prefix=0,
        image_size=config.image_size,
        patch=config.patch_size,
        width=config.hidden_size,
    )


def _forward(blocks: Sequence[Any], x_NLD: Tensor) -> Tensor:
    for block in blocks:
        x_NLD = block(x_NLD, None)
    return x_NLD


def _class_attention(block: Any, x_NLD: Tensor) -> Tensor:
    """Return the attention of the first token to all tokens, by head: float32 [N, L, A]."""
    attention, x_NLD = block.self_attn, block.layer_norm1(x_NLD)
    query_NhK = attention.q_proj(x_NLD[:, 0]).unflatten(-1, (attention.num_heads, -1))
    keys_NLhK = attention.k_proj(x_NLD).unflatten(-1, (attention.num_heads, -1))
    logits_NLh = (query_NhK[:, None] * keys_NLhK).float().sum(-1) * attention.scale
    return logits_NLh.softmax(dim=1)


def _value_block(block: Any, x_NLD: Tensor) -> Tensor:
    attention = block.self_attn
    x_NLD = x_NLD + attention.out_proj(attention.v_proj(block.layer_norm1(x_NLD)))
    return x_NLD + block.mlp(block.layer_norm2(x_NLD))


def _value_value_attention(block: Any, x_NLD: Tensor) -> Tensor:
    attention = block.self_attn
    values = attention.v_proj(block.layer_norm1(x_NLD)).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(values, values, values, scale=attention.scale)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def raw(blocks: Sequence[Any], x_NLD: Tensor) -> Tensor:
    return _forward(blocks, x_NLD)


def value(blocks: Sequence[Any], x_NLD: Tensor) -> Tensor:
    return _value_block(blocks[-1], _forward(blocks[:-1], x_NLD))


def vv(blocks: Sequence[Any], x_NLD: Tensor) -> Tensor:
    last = max(min(SURGERY_BLOCKS, len(blocks) // 2), 1)
    x_NLD = _forward(blocks[:-last], x_NLD)
    path_NLD = x_NLD
    for block in blocks[-last:]:
        path_NLD = path_NLD + _value_value_attention(block, x_NLD)
        x_NLD = block(x_NLD, None)
    return path_NLD


SCORERS: dict[str, Callable[[Sequence[Any], Tensor], Tensor]] = {"raw": raw, "value": value, "vv": vv}


class ImageTower:
    """Patch features and picture embeddings of a frozen tower, outside any engine."""

    def __init__(self, trunk: Trunk, preprocessing: Preprocessing, device: torch.device, compiled: bool = False):
        """Set up the tower. compiled: use torch.compile for patch tokens and attention; each shape costs a
        compilation."""
        self.trunk, self.preprocessing, self.device = trunk, preprocessing, device
        self.image_size, self.patch, self.width = trunk.image_size, trunk.patch, trunk.width
        self._tokens, self._attention = self._joint_tokens, self._pooling_attention
        if compiled:
            self._tokens = torch.compile(self._tokens, dynamic=False)
            self._attention = torch.compile(self._attention, dynamic=False)

    def tokens(self, resolution: int | None = None) -> int:
        """Return the number of tokens of one frame."""
        return ((resolution or self.image_size) // self.patch) ** 2 + self.trunk.prefix

    @torch.no_grad()
    def patch_tokens(self, frames_N3HW: Tensor, scorer: str, resolution: int | None = None) -> Tensor:
        """Return patch features of whole frames in the joint space, not normalised: float32 [N, h, w, E].

        frames_N3HW: uint8, any size. resolution: input side of the tower, a multiple of its patch (None: the side
        it was trained on; for others its position embeddings are interpolated)."""
        side = resolution or self.image_size
        pixels = self.preprocessing.frames(frames_N3HW.to(self.device), side)
        return self._tokens(pixels, scorer).unflatten(1, (side // self.patch, side // self.patch))

    @torch.no_grad()
    def attention(self, frames_N3HW: Tensor, resolution: int | None = None, of_heads: bool = False) -> Tensor:
        """Return the attention of a frame's pooling token to the patches, averaged over the heads: float32 [N, h,
        w]; sums to at most 1. of_heads: that of each head, [N, h, w, A]."""
        side = resolution or self.image_size
        pixels = self.preprocessing.frames(frames_N3HW.to(self.device), side)
        return self._attention(pixels, of_heads).unflatten(1, (side // self.patch, side // self.patch))

    def _joint_tokens(self, pixels: Tensor, scorer: str) -> Tensor:
        tokens_NLD = SCORERS[scorer](self.trunk.blocks, self.trunk.embed(pixels))
        return self.trunk.project(tokens_NLD[:, self.trunk.prefix :]).float()

    def _pooling_attention(self, pixels: Tensor, of_heads: bool = False) -> Tensor:
        tokens_NLD = _forward(self.trunk.blocks[:-1], self.trunk.embed(pixels))
        attention_NLA = self.trunk.attend(tokens_NLD)
        attention = attention_NLA if of_heads else attention_NLA.mean(dim=-1)
        return attention.float()[:, self.trunk.prefix :]

    @torch.no_grad()
    def embed(self, pictures_N3HW: Tensor) -> Tensor:
        """Return embeddings of whole pictures, unit length: float32 [N, E] of uint8 [N, 3, H, W]."""
        pixels = self.preprocessing.pictures(pictures_N3HW.to(self.device))
        tokens_NLD = _forward(self.trunk.blocks, self.trunk.embed(pixels))
        return F.normalize(self.trunk.pool(tokens_NLD).float(), dim=-1)


class _Memoised:
    """Wrapper of a function of a tensor, or of a tower's block, that caches its last input and output. Other
    attributes are those of the block."""

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        if self._last is None or not (x is self._last[0] or torch.equal(x, self._last[0])):
            self._last = x, self._function(x, *rest)
        return self._last[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def memoised(image: ImageTower) -> ImageTower:
    """Return the same tower with blocks that run once for frames that are passed again for the next map. It keeps
    each block's last output: 29 MB for a pass of 16 frames through CLIP's ViT-B/32."""
    trunk = image.trunk
    once = replace(trunk, embed=_Memoised(trunk.embed), blocks=[_Memoised(block) for block in trunk.blocks])
    return ImageTower(once, image.preprocessing, image.device)
