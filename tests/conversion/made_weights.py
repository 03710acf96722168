"""Models with no bias at 0 and no norm at 1, so that a swapped or lost one shows; made, not trained."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from tgm_scale.conversion.key_maps import ModelKind, ModelMetadata
from tgm_scale.conversion.weights import Weights
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import SIZES, ModelSize

SMALL = replace(SIZES["tiny"], width=48, depth=3, heads=3, mlp=96, decoder_width=32, decoder_depth=2, decoder_mlp=80)
FRAMES, SIDE, CLASSES = 8, 32, 5


def perturbed(module: nn.Module, scale: float = 0.1) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return module


def autoencoder(size: ModelSize = SMALL, embedding_width: int | None = None) -> MaskedVideoAutoencoder:
    model = perturbed(MaskedVideoAutoencoder(size, FRAMES, SIDE, embedding_width=embedding_width))
    assert isinstance(model, MaskedVideoAutoencoder)
    return model


def classifier(size: ModelSize = SMALL, classes: int = CLASSES) -> VideoClassifier:
    model = perturbed(VideoClassifier(size, FRAMES, SIDE, classes))
    assert isinstance(model, VideoClassifier)
    return model


def made(kind: ModelKind, size: ModelSize = SMALL, labels: tuple[str, ...] | None = None) -> Weights:
    """Weights of a kind; a pretraining model with all that a run has."""
    if kind == "pretraining":
        state: dict[str, Tensor] = autoencoder(size, embedding_width=8).state_dict() | {"log_scale": torch.ones(1)}
    elif kind == "classifier":
        state = classifier(size).state_dict()
    else:
        state = {name: value for name, value in autoencoder(size).state_dict().items() if name.startswith("encoder.")}
    return Weights.of(kind, state, stated(size, labels), [])


def stated(size: ModelSize = SMALL, labels: tuple[str, ...] | None = None) -> ModelMetadata:
    return ModelMetadata(size.heads, size.decoder_heads, FRAMES, SIDE, labels, {"run": {"seed": 3}})


def facts(size: ModelSize = SMALL) -> dict:
    """What a checkpoint's manifest says of the model."""
    return {"model": asdict(size) | {"name": "made"}, "frames": FRAMES, "image_size": SIDE, "config": {"run": {}}}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names and the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
