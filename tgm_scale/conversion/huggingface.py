"""Our weights as `transformers.VideoMAEForPreTraining` reads them, and back.

The maps are pure functions from dictionary to dictionary over one table of names. Heads cannot be told from weights
(a wrong count loads without complaint and shifts the outputs), so both directions take the model's size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import NORM_EPS, ModelSize
from tgm_scale.runtime import seeding
from tgm_scale.runtime.compat import prepare_torchvision

if TYPE_CHECKING:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

OWN_PREFIX = "projection."  # what we have beside VideoMAE's weights: left out of an export
CHECK_VISIBLE_SHARE = 0.1

_BLOCK = {
    "norm1.weight": ("layernorm_before.weight",),
    "norm1.bias": ("layernorm_before.bias",),
    "attn.qkv.weight": tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")),
    "attn.q_bias": ("attention.attention.query.bias",),
    "attn.v_bias": ("attention.attention.value.bias",),
    "attn.proj.weight": ("attention.output.dense.weight",),
    "attn.proj.bias": ("attention.output.dense.bias",),
    "norm2.weight": ("layernorm_after.weight",),
    "norm2.bias": ("layernorm_after.bias",),
    "mlp.fc1.weight": ("intermediate.dense.weight",),
    "mlp.fc1.bias": ("intermediate.dense.bias",),
    "mlp.fc2.weight": ("output.dense.weight",),
    "mlp.fc2.bias": ("output.dense.bias",),
}
_OUTSIDE = {
    "encoder.patch_embed.proj.weight": ("videomae.embeddings.patch_embeddings.projection.weight",),
    "encoder.patch_embed.proj.bias": ("videomae.embeddings.patch_embeddings.projection.bias",),
    "encoder.norm.weight": ("videomae.layernorm.weight",),
    "encoder.norm.bias": ("videomae.layernorm.bias",),
    **{name: (name,) for name in ("encoder_to_decoder.weight", "mask_token")},
    **{name: (name,) for name in ("decoder.norm.weight", "decoder.norm.bias")},
    **{name: (name,) for name in ("decoder.head.weight", "decoder.head.bias")},
}
_VERSION_4 = {"query.bias": "q_bias", "value.bias": "v_bias"}  # transformers 4 has these names, published files too


def names(size: ModelSize) -> dict[str, tuple[str, ...]]:
    """Our name -> the names in transformers 5 whose tensors, one below the other, are ours."""
    table: dict[str, tuple[str, ...]] = dict(_OUTSIDE)
    for ours, theirs, depth in (
        ("encoder.blocks", "videomae.encoder.layer", size.depth),
        ("decoder.blocks", "decoder.decoder_layers", size.decoder_depth),
    ):
        for i in range(depth):
            table |= {
                f"{ours}.{i}.{name}": tuple(f"{theirs}.{i}.{other}" for other in others)
                for name, others in _BLOCK.items()
            }
    return table


def to_huggingface(state: dict[str, Tensor], size: ModelSize) -> dict[str, Tensor]:
    """Our state dict under the names of transformers 5; `projection.*` is left out.

    Raises ValueError naming all missing and all unknown keys."""
    table = names(size)
    own = {name: value for name, value in state.items() if not name.startswith(OWN_PREFIX)}
    _check_keys(set(own), set(table), "state dict of a masked video autoencoder")
    return {
        other: part
        for name, value in own.items()
        for other, part in zip(table[name], value.chunk(len(table[name])), strict=True)
    }


def from_huggingface(state: dict[str, Tensor], size: ModelSize) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`; takes the names of transformers 5 and those of 4 for query and value biases.

    Raises ValueError naming all missing and all unknown keys."""
    table = names(size)
    renamed = {}
    for name, value in state.items():
        for new, old in _VERSION_4.items():
            name = name.replace(f"attention.attention.{old}", f"attention.attention.{new}")
        renamed[name] = value
    _check_keys(set(renamed), {other for others in table.values() for other in others}, "VideoMAEForPreTraining")
    return {name: torch.cat([renamed[other] for other in others]) for name, others in table.items()}


def _check_keys(found: set[str], wanted: set[str], kind: str) -> None:
    if found != wanted:
        raise ValueError(
            f"not the weights of a {kind} of this size: missing {sorted(wanted - found) or 'none'}, "
            f"unknown {sorted(found - wanted) or 'none'}; check size, depth and decoder depth"
        )


def configuration(size: ModelSize, frames: int, image_size: int) -> VideoMAEConfig:
    """The transformers configuration of a model: eps 1e-6 (their default is 1e-12), the encoder's final norm kept."""
    prepare_torchvision()
    from transformers import VideoMAEConfig

    return VideoMAEConfig(
        image_size=image_size,
        patch_size=size.patch,
        num_frames=frames,
        tubelet_size=size.tubelet,
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=size.mlp,
        decoder_hidden_size=size.decoder_width,
        decoder_num_hidden_layers=size.decoder_depth,
        decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=size.decoder_mlp,
        layer_norm_eps=NORM_EPS,
        use_mean_pooling=False,
        qv_bias=True,
        norm_pix_loss=True,
    )


class Export(NamedTuple):
    """What an export did."""

    max_difference: float  # largest absolute difference of predicted pixels, theirs loaded back against ours
    left_out: list[str]  # our parameters that VideoMAE has no place for


def export_pretraining(
    state: dict[str, Tensor], size: ModelSize, frames: int, image_size: int, folder: str | Path
) -> Export:
    """Write a folder that `VideoMAEForPreTraining.from_pretrained` loads, load it, and compare it with our model.

    The folder gets config.json, model.safetensors (float32) and preprocessor_config.json with the ImageNet statistics
    of training (their default is 0.5). The comparison decodes a fixed clip of noise, in float32. transformers fixes
    the decoder's last norm at eps 1e-5 where VideoMAE has 1e-6, so differences about 1e-6 are to be expected.
    Raises ValueError as `to_huggingface` does."""
    exported = to_huggingface({name: value.detach().float().cpu() for name, value in state.items()}, size)
    config = configuration(size, frames, image_size)
    from transformers import VideoMAEForPreTraining, VideoMAEImageProcessor
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    theirs = VideoMAEForPreTraining(config)
    theirs.load_state_dict(exported)
    theirs.save_pretrained(folder)
    VideoMAEImageProcessor(
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
    ).save_pretrained(folder)
    loaded = VideoMAEForPreTraining.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    ours = MaskedVideoAutoencoder(size, frames, image_size, attention="sdpa")
    left_out = [name for name in state if name.startswith(OWN_PREFIX)]
    ours.load_state_dict({name: value for name, value in state.items() if name not in left_out})
    return Export(_difference(ours, loaded), left_out)


@torch.no_grad()
def _difference(ours: MaskedVideoAutoencoder, theirs: VideoMAEForPreTraining) -> float:
    """Largest absolute difference of predictions on one clip of keyed noise."""
    channels, frames, height, width = ours.clip_shape
    seed = torch.tensor([seeding.key("export check")])
    noise = seeding.bits(seed, channels * frames * height * width, "clip") & 255
    video_BCTHW = noise.to(torch.uint8).view(1, channels, frames, height, width)
    order_BN = seeding.bits(seed, ours.grid.tokens, "mask").argsort(dim=1)
    visible = max(1, int(ours.grid.tokens * CHECK_VISIBLE_SHARE))
    visible_BV, target_BM = order_BN[:, :visible].sort().values, order_BN[:, visible:].sort().values
    hidden_BN = torch.zeros(order_BN.shape, dtype=torch.bool).scatter(1, target_BM, True)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    pixels_BTCHW = (video_BCTHW.transpose(1, 2) / 255 - mean) / std
    expected = theirs(pixels_BTCHW, bool_masked_pos=hidden_BN).logits
    return (ours(video_BCTHW, visible_BV, target_BM).prediction_BMP - expected).abs().max().item()
