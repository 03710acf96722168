"""Conversion to and from `transformers.VideoMAEForPreTraining` and `VideoMAEForVideoClassification`.

Maps are pure functions from dictionary to dictionary over key maps. Heads do not follow from weights (a wrong number
loads without complaint and shifts the outputs), so they are taken from the configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tgm_scale.conversion import key_maps
from tgm_scale.conversion.huggingface_config import metadata_of_videomae, metadata_of_videomae_2
from tgm_scale.conversion.key_maps import KeyMap, ModelKind, ModelMetadata
from tgm_scale.conversion.weights import OWN_ENTRY, Weights, fixed_clip, fixed_mask
from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD
from tgm_scale.models.vit import NORM_EPS, ModelSize
from tgm_scale.runtime.compat import prepare_torchvision
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.tensors import writing

if TYPE_CHECKING:
    from transformers import VideoMAEConfig

_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_ATTENTION = {
    "attn.qkv.weight": tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")),
    "attn.q_bias": ("attention.attention.query.bias",),
    "attn.v_bias": ("attention.attention.value.bias",),
}
_OUTSIDE = {
    "encoder.patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "encoder.norm": "videomae.layernorm",
    "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "head": "classifier",
}  # encoder_to_decoder, mask_token, decoder.norm, decoder.head and fc_norm have the same names
_VIDEOMAE_2 = "VideoMAEv2"  # model_type prefix of folders with VideoMAE V2's own code
_VERSION_4 = {"query.bias": "q_bias", "value.bias": "v_bias"}  # names in transformers 4, and in published files


def names(kind: ModelKind, depth: int, decoder_depth: int = 0, head: bool = True) -> KeyMap:
    """Return our name -> the names in transformers 5 whose tensors, concatenated along the first axis, are ours."""
    return {name: _theirs(kind, name) for name in key_maps.own_names(kind, depth, decoder_depth, head)}


def _theirs(kind: ModelKind, name: str) -> tuple[str, ...]:
    stacks = {key_maps.blocks_prefix(kind): "videomae.encoder.layer", "decoder.blocks": "decoder.decoder_layers"}
    for ours, theirs in stacks.items():
        if name.startswith(f"{ours}."):
            number, within = name.removeprefix(f"{ours}.").split(".", 1)
            layer, _, part = within.rpartition(".")
            return tuple(f"{theirs}.{number}.{x}" for x in _ATTENTION.get(within) or (f"{_BLOCK[layer]}.{part}",))
    layer, _, part = name.rpartition(".")
    return (f"{_OUTSIDE[layer]}.{part}" if layer in _OUTSIDE else name,)


def to_huggingface(weights: Weights) -> dict[str, Tensor]:
    """Return the weights of a pretraining model or classifier under the names of transformers 5.

    Raises ValueError that lists all missing and all unknown keys."""
    key_map = names(weights.kind, weights.size.depth, weights.size.decoder_depth, head=weights.classes > 0)
    return key_maps.from_own_keys(weights.state, key_map, "weights for transformers")


def to_ours(state: Mapping[str, Tensor], kind: ModelKind) -> dict[str, Tensor]:
    """Invert `to_huggingface`; accepts the names of transformers 5 and those of 4 for query and value biases.

    Raises ValueError that lists all missing and all unknown keys."""
    renamed = {}
    for name, value in state.items():
        for new, old in _VERSION_4.items():
            name = name.replace(f"attention.attention.{old}", f"attention.attention.{new}")
        renamed[name] = value
    stacks = ("videomae.encoder.layer", "decoder.decoder_layers")
    depth, decoder_depth = (key_maps.count_blocks(renamed, stack) for stack in stacks)
    head = any(name.startswith("classifier.") for name in renamed)
    return key_maps.to_own_keys(renamed, names(kind, depth, decoder_depth, head), "transformers' VideoMAE")


def shape_settings(size: ModelSize, frames: int, image_size: int) -> dict[str, Any]:
    """Return the shape of encoder and clips as fields of VideoMAEConfig."""
    return {
        "image_size": image_size,
        "patch_size": size.patch,
        "num_frames": frames,
        "tubelet_size": size.tubelet,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": size.mlp,
    }


def decoder_settings(size: ModelSize) -> dict[str, Any]:
    """Return the shape of the decoder as fields of VideoMAEConfig."""
    return {
        "decoder_hidden_size": size.decoder_width,
        "decoder_num_hidden_layers": size.decoder_depth,
        "decoder_num_attention_heads": size.decoder_heads,
        "decoder_intermediate_size": size.decoder_mlp,
    }


def configuration(weights: Weights) -> VideoMAEConfig:
    """Return the transformers configuration of a model; eps is 1e-6, where their default is 1e-12.

    A pretraining model keeps the encoder's final norm; a classifier normalises the mean token."""
    prepare_torchvision()
    from transformers import VideoMAEConfig

    settings: dict[str, Any] = {OWN_ENTRY: _own_facts(weights)}
    if weights.kind == "pretraining":
        # transformers cannot normalise targets by the clip, with or without this
        by_patch = ((weights.config or {}).get("objective") or {}).get("normalise_by", "patch") == "patch"
        settings |= decoder_settings(weights.size) | {"norm_pix_loss": by_patch}
    elif weights.labels:
        settings["id2label"] = dict(enumerate(weights.labels))
        settings["label2id"] = {label: i for i, label in enumerate(weights.labels)}
    else:
        settings["num_labels"] = weights.classes
    return VideoMAEConfig(
        **shape_settings(weights.size, weights.frames, weights.image_size),
        layer_norm_eps=NORM_EPS,
        use_mean_pooling=weights.kind == "classifier",
        qv_bias=True,
        **settings,
    )


def read_metadata(folder: Path, names: Collection[str]) -> ModelMetadata:
    """Return the metadata of a transformers folder's config.json. names: of its tensors.

    Raises ValueError if the model is not a VideoMAE that ours can hold."""
    prepare_torchvision()
    from transformers import VideoMAEConfig

    plain = json_object(folder / "config.json")
    kind = str(plain.get("model_type"))
    try:
        if kind.startswith(_VIDEOMAE_2):
            return metadata_of_videomae_2(plain, names)
        if kind != "videomae":
            raise ValueError(f"of a '{kind}', wanted a 'videomae'")
        return metadata_of_videomae(VideoMAEConfig().to_dict() | {"id2label": None} | plain, names)
    except ValueError as mistake:
        raise ValueError(f"{folder / 'config.json'}: {mistake}") from None


def _own_facts(weights: Weights) -> dict[str, Any]:
    """Return facts that our readers need and transformers has no field for; no paths of the run."""
    config = weights.config or {}
    fields = {
        "objective": ("normalise_by",),
        "data": ("stride", "sampling", "standardise"),
        "model": ("initialisation",),
    }
    kept = {
        part: {name: config[part][name] for name in names if name in (config.get(part) or {})}
        for part, names in fields.items()
    }
    return {"config": {part: values for part, values in kept.items() if values}}


def write(weights: Weights, folder: Path) -> None:
    """Write a folder for `from_pretrained`: config.json, model.safetensors (float32), preprocessor_config.json.

    The latter has the ImageNet statistics of training (their default is 0.5). Raises ValueError as `to_huggingface`
    does."""
    config = configuration(weights)
    kind = model_class(weights.kind)  # first: what transformers creates while imported must not be on "meta"
    with torch.device("meta"):  # without initialisation: all weights are given
        model = kind(config)
    model.load_state_dict(to_huggingface(weights), assign=True)
    with writing(folder):
        model.save_pretrained(folder)
    from transformers import VideoMAEImageProcessor

    VideoMAEImageProcessor(
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        size={"shortest_edge": weights.image_size},
        crop_size={"height": weights.image_size, "width": weights.image_size},
    ).save_pretrained(folder)


@torch.no_grad()
def outputs(folder: Path, weights: Weights) -> Tensor:
    """Compute the fixed clip's outputs by transformers with the folder's model; the counterpart of `weights.outputs`.

    transformers fixes eps 1e-5 in two norms (the decoder's last, the classifier's) while VideoMAE has 1e-6, so
    differences of 1e-6 to 1e-5 are expected."""
    theirs = model_class(weights.kind).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    pixels_BTCHW = (fixed_clip(weights).transpose(1, 2) / 255 - mean) / std
    if weights.kind == "classifier":
        return theirs(pixels_BTCHW).logits
    visible_BV, target_BM = fixed_mask(weights)
    hidden_BN = torch.zeros(1, visible_BV.shape[1] + target_BM.shape[1], dtype=torch.bool).scatter(1, target_BM, True)
    return theirs(pixels_BTCHW, bool_masked_pos=hidden_BN).logits


def model_class(kind: ModelKind) -> Any:
    prepare_torchvision()
    from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return VideoMAEForVideoClassification if kind == "classifier" else VideoMAEForPreTraining
