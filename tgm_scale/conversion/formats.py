"""Known formats: each is recognised by its required keys and translated into our keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tgm_scale.conversion import huggingface, mae_st
from tgm_scale.conversion.key_maps import ModelKind, to_own_keys
from tgm_scale.conversion.statistics import for_imagenet
from tgm_scale.models.patches import PixelStatistics

State = dict[str, Tensor]


class Translation(NamedTuple):
    """Tensors under our names, with notes on tensors left behind."""

    kind: ModelKind
    state: State
    notes: list[str]


class Format(NamedTuple):
    """A format: its name, its required tensor names, and its translation into ours (tensors, lossy, tubelet)."""

    name: str
    required: frozenset[str]
    translate: Callable[[State, bool, int], Translation]


def detect(state: State) -> Format:
    """Return the format whose required names are all present. Raises ValueError that lists what each format lacks."""
    if cosine := [name for name in state if name.endswith("attn.scale")]:
        raise ValueError(f"cosine attention ({cosine[0]}): attention here is the plain one, nothing exact comes of it")
    for known in FORMATS:
        if known.required <= state.keys():
            return known
    wants = "; ".join(f"{known.name} lacks {', '.join(sorted(known.required - state.keys()))}" for known in FORMATS)
    raise ValueError(f"no known format: its {len(state)} names begin {sorted(state)[:5]}; {wants}")


def _videomae(kind: ModelKind, state: State, lossy: bool, _: int) -> Translation:
    learned = [name for name in state if name in ("encoder.pos_embed", "pos_embed")]
    notes = _lose(learned, lossy)
    return Translation(kind, {name: value for name, value in state.items() if name not in learned}, notes)


def _huggingface(kind: ModelKind, state: State, lossy: bool, _: int) -> Translation:
    return Translation(kind, huggingface.to_ours(state, kind), [])


def _huggingface_model(state: State, lossy: bool, _: int) -> Translation:
    """Translate a VideoMAEModel, with or without a norm after its blocks (`use_mean_pooling` false or true)."""
    named = {name if name.startswith("videomae.") else f"videomae.{name}": value for name, value in state.items()}
    if "videomae.layernorm.weight" in named:
        return Translation("encoder", huggingface.to_ours(named, "encoder"), [])
    width = named[_HUGGINGFACE].shape[0]
    norm = {"fc_norm.weight": torch.ones(width), "fc_norm.bias": torch.zeros(width)}
    note = "a VideoMAEModel without a norm after its blocks (use_mean_pooling): fc_norm at its first values, no head"
    return Translation("classifier", huggingface.to_ours(named | norm, "classifier"), [note])


def _first_token(state: State, lossy: bool, _: int) -> Translation:
    """Translate a VideoMAEForVideoClassification that classifies by the first token (`use_mean_pooling` false)."""
    head = [name for name in state if name.startswith("classifier.")]
    if not lossy:
        raise ValueError(
            "a classifier of the first token (use_mean_pooling false), where this project's and VideoMAE's are of the "
            "mean: its head has no place here. Give --lossy to convert the encoder with its norm, without the head"
        )
    rest = {name: value for name, value in state.items() if name not in head}
    return Translation("encoder", huggingface.to_ours(rest, "encoder"), ["lost the head: it is of the first token"])


def _mae_st(state: State, lossy: bool, _: int) -> Translation:
    """Translate mae_st, whose videos have mean 0.45 and deviation 0.225 (mae_st, util/kinetics.py; PySlowFast)."""
    kernel, bias = (f"patch_embed.proj.{name}" for name in ("weight", "bias"))
    notes: list[str] = []
    weight = state.get(kernel)
    if bias in state and weight is not None and weight.ndim == 5 and weight.shape[1] == 3:  # others are refused below
        state, notes = for_imagenet(state, kernel, PixelStatistics((0.45,) * 3, (0.225,) * 3))
    found = _blocks(state, lossy)
    return found._replace(notes=[*notes, *found.notes])


def _blocks(state: State, lossy: bool) -> Translation:
    lost = [name for name in state if name in mae_st.LEARNED or name.startswith(mae_st.ELSEWHERE)]
    biases = [name for name in state if name.startswith("blocks.") and name.endswith("attn.k.bias")]
    kept = {name: value for name, value in state.items() if name not in {*lost, *biases}}
    notes = [*_lose(lost, lossy), f"left out {len(biases)} k biases: exact, softmax does not see them"]
    return Translation("encoder", to_own_keys(kept, mae_st.key_map(kept), "the encoder"), notes)


def _image_vit(state: State, lossy: bool, tubelet: int) -> Translation:
    found = _blocks(mae_st.to_video(state, tubelet), lossy)
    pixels = "pixels are taken as normalised by ImageNet's mean and deviation; timm's augreg models had 0.5 and 0.5"
    return found._replace(notes=[f"inflated the patch embedding over {tubelet} frames", pixels, *found.notes])


def _lose(names: list[str], lossy: bool) -> list[str]:
    """Return a note on the tensors that are lost. Raises ValueError if the user has not agreed (`lossy`)."""
    if not names:
        return []
    groups = sorted({name.split(".")[0] for name in names})
    if not lossy:
        raise ValueError(
            f"{', '.join(groups)}: no place in this project's model, whose positions are fixed and which has no class "
            "token; without them the outputs differ. Give --lossy to convert the rest, as a start for training"
        )
    return [f"lost {len(names)} tensors that have no place here: {', '.join(groups)}"]


_HUGGINGFACE = "videomae.embeddings.patch_embeddings.projection.weight"

FORMATS = (
    Format(
        "VideoMAE or this project, pretraining",
        frozenset({"encoder.patch_embed.proj.weight", "decoder.head.weight"}),
        partial(_videomae, "pretraining"),
    ),
    Format(
        "this project, encoder",
        frozenset({"encoder.patch_embed.proj.weight", "encoder.norm.weight"}),
        partial(_videomae, "encoder"),
    ),
    Format(
        "VideoMAE or this project, classifier",
        frozenset({"patch_embed.proj.weight", "blocks.0.attn.q_bias"}),
        partial(_videomae, "classifier"),
    ),
    Format(
        "transformers, pretraining",
        frozenset({_HUGGINGFACE, "decoder.head.weight"}),
        partial(_huggingface, "pretraining"),
    ),
    Format(
        "transformers, classifier", frozenset({_HUGGINGFACE, "fc_norm.weight"}), partial(_huggingface, "classifier")
    ),
    Format(
        "transformers, classifier of the first token",
        frozenset({_HUGGINGFACE, "videomae.layernorm.weight", "classifier.weight"}),
        _first_token,
    ),
    Format("transformers, encoder", frozenset({_HUGGINGFACE}), _huggingface_model),
    Format("transformers, VideoMAEModel", frozenset({_HUGGINGFACE.removeprefix("videomae.")}), _huggingface_model),
    Format("mae_st, encoder", frozenset({"patch_embed.proj.weight", "blocks.0.attn.k.weight"}), _mae_st),
    Format("image ViT", frozenset({"patch_embed.proj.weight", "blocks.0.attn.qkv.bias"}), _image_vit),
)
