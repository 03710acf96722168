"""State dicts as other projects write them, by their documented names and shapes; values are made."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def _fill(shapes: dict[str, tuple[int, ...]]) -> State:
    """Values of the size that trained weights have; norms near 1."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.1 + float("norm" in name and name.endswith("weight"))
        for name, shape in shapes.items()
    }


def _linear(name: str, into: int, out: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _videomae_blocks(prefix: str, width: int, mlp: int, depth: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        block = f"{prefix}blocks.{i}."
        shapes |= _norm(f"{block}norm1", width) | _norm(f"{block}norm2", width)
        shapes |= _linear(f"{block}attn.qkv", width, 3 * width, bias=False)
        shapes |= {f"{block}attn.q_bias": (width,), f"{block}attn.v_bias": (width,)}
        shapes |= _linear(f"{block}attn.proj", width, width)
        shapes |= _linear(f"{block}mlp.fc1", width, mlp) | _linear(f"{block}mlp.fc2", mlp, width)
    return shapes


def videomae_pretraining(width: int, depth: int, decoder_width: int, decoder_depth: int, patch: int = 16) -> State:
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, decoder_width)}
    shapes |= {
        "encoder.patch_embed.proj.weight": (width, 3, 2, patch, patch),
        "encoder.patch_embed.proj.bias": (width,),
    }
    shapes |= _videomae_blocks("encoder.", width, 4 * width, depth) | _norm("encoder.norm", width)
    shapes |= _linear("encoder_to_decoder", width, decoder_width, bias=False)
    shapes |= _videomae_blocks("decoder.", decoder_width, 4 * decoder_width, decoder_depth)
    shapes |= _norm("decoder.norm", decoder_width) | _linear("decoder.head", decoder_width, 3 * 2 * patch**2)
    return _fill(shapes)


def videomae_finetuned(width: int, depth: int, classes: int, patch: int = 16) -> State:
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (width, 3, 2, patch, patch)}
    shapes |= {"patch_embed.proj.bias": (width,)} | _videomae_blocks("", width, 4 * width, depth)
    return _fill(shapes | _norm("fc_norm", width) | _linear("head", width, classes))


def _mae_st_blocks(prefix: str, width: int, depth: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        block = f"{prefix}.{i}."
        shapes |= _norm(f"{block}norm1", width) | _norm(f"{block}norm2", width)
        for layer in ("q", "k", "v", "proj"):
            shapes |= _linear(f"{block}attn.{layer}", width, width)
        shapes |= _linear(f"{block}mlp.fc1", width, 4 * width) | _linear(f"{block}mlp.fc2", 4 * width, width)
    return shapes


def mae_st(style: str, width: int, depth: int, slots: int, places: int, patch: int) -> State:
    """style: "code" for mae_st's own names of the decoder, "released" for PySlowFast's, "finetuned" for a head."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed_class": (1, 1, width)}
    shapes |= {"pos_embed_spatial": (1, places, width), "pos_embed_temporal": (1, slots, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 2, patch, patch), "patch_embed.proj.bias": (width,)}
    shapes |= _mae_st_blocks("blocks", width, depth) | _norm("norm", width)
    if style == "finetuned":
        return _fill(shapes | _linear("head", width, 7))
    shapes |= _linear("decoder_embed", width, 16) | {"mask_token": (1, 1, 16)}
    if style == "code":
        shapes |= {"decoder_cls_token": (1, 1, 16), "decoder_pos_embed_class": (1, 1, 16)}
        shapes |= {"decoder_pos_embed_spatial": (1, places, 16), "decoder_pos_embed_temporal": (1, slots, 16)}
        shapes |= _mae_st_blocks("decoder_blocks", 16, 1) | _norm("decoder_norm", 16)
        shapes |= _linear("decoder_pred", 16, 3 * patch**2)
    else:
        shapes |= {"dec_pos_embed_class": (1, 1, 16), "dec_pos_embed_spatial": (1, places, 16)}
        shapes |= {"dec_pos_embed_temporal": (1, slots, 16)} | _mae_st_blocks("pred_head.transforms.0", 16, 1)
        shapes |= _norm("pred_head.transforms.0.1", 16) | _linear("pred_head.projections.0", 16, 3 * patch**2)
    return _fill(shapes)


def image_mae(width: int, depth: int, places: int, patch: int) -> State:
    """MAE's pretraining file: an image ViT with a decoder beside it."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, places + 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        block = f"blocks.{i}."
        shapes |= _norm(f"{block}norm1", width) | _norm(f"{block}norm2", width)
        shapes |= _linear(f"{block}attn.qkv", width, 3 * width) | _linear(f"{block}attn.proj", width, width)
        shapes |= _linear(f"{block}mlp.fc1", width, 4 * width) | _linear(f"{block}mlp.fc2", 4 * width, width)
    shapes |= _norm("norm", width) | {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, places + 1, 16)}
    shapes |= _linear("decoder_embed", width, 16) | _linear("decoder_blocks.0.attn.qkv", 16, 48)
    return _fill(shapes | _norm("decoder_norm", 16) | _linear("decoder_pred", 16, 3 * patch**2))


class PlainEncoder(nn.Module):
    """The blocks and last norm of a file with `blocks.i.attn.{q,k,v}` in plain words, k bias and all: a reference."""

    def __init__(self, state: State, heads: int):
        super().__init__()
        self.state, self.heads = state, heads
        self.depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            x = x + self._attention(f"blocks.{i}.attn.", self._norm(f"blocks.{i}.norm1", x))
            hidden = nn.functional.gelu(self._linear(f"blocks.{i}.mlp.fc1", self._norm(f"blocks.{i}.norm2", x)))
            x = x + self._linear(f"blocks.{i}.mlp.fc2", hidden)
        return self._norm("norm", x)

    def _attention(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (self._linear(f"{name}{part}", x).unflatten(-1, (self.heads, -1)) for part in "qkv")
        scores = torch.einsum("bnhk,bmhk->bhnm", q, k) / q.shape[-1] ** 0.5
        return self._linear(f"{name}proj", torch.einsum("bhnm,bmhk->bnhk", scores.softmax(-1), v).flatten(2))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return nn.functional.layer_norm(x, weight.shape, weight, self.state[f"{name}.bias"], eps=1e-6)
