"""Conversion of models whose pixels were normalised by other statistics than ImageNet's.

Shapes: D width, C channels, t, p, p of the patch embedding's kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgm_scale.models.patches import IMAGENET, PixelStatistics
from tgm_scale.runtime.outside.json_text import json_object

_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_TYPES = ("image_processor_type", "video_processor_type", "feature_extractor_type")
_KERNELS = ("patch_embeddings.projection.weight", "patch_embed.proj.weight")  # VideoMAE; VideoMAE V2's own code
_UNSAID = 0.5  # default mean and deviation of transformers' VideoMAE processors
_CLOSE = 1e-6


def into_patch_embedding(tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return a transformers folder's weights for pixels normalised by ImageNet's statistics; a note if they differed.

    Its preprocessing is (x * factor - mean) / std, ours (x / 255 - mean') / std': one is linear in the other, channel
    by channel, and so goes into weight and bias of the patch embedding, up to rounding. A folder without a
    preprocessing file has ImageNet's. Raises ValueError for a deviation of 0, and for values that are not numbers."""
    settings = _said(folder)
    kernel = next((name for name in tensors if name.endswith(_KERNELS)), None)
    if settings is None or kernel is None or kernel.removesuffix("weight") + "bias" not in tensors:
        return dict(tensors), []  # a missing name is reported where all are checked
    factor, mean_C, std_C = _linear(settings, folder)
    old = PixelStatistics(*(tuple((x / (255 * factor)).tolist()) for x in (mean_C, std_C)))
    return for_imagenet(tensors, kernel, old)


def of_own_run(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the same for this project's weights whose run configuration has `data.mean` and `data.std`."""
    data = config.get("data") or {}
    kernel = next((name for name in tensors if name.endswith(_KERNELS)), None)
    if kernel is None or not data.get("mean"):
        return dict(tensors), []
    return for_imagenet(tensors, kernel, PixelStatistics(tuple(data["mean"]), tuple(data["std"])))


def for_imagenet(
    tensors: Mapping[str, Tensor], kernel: str, old: PixelStatistics
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors with the patch embedding restated for ImageNet's statistics, and a note if they differed."""
    apart = max(abs(x - y) for given, ours in zip(old, IMAGENET) for x, y in zip(given, ours))
    if apart < _CLOSE:
        return dict(tensors), []
    bias = kernel.removesuffix("weight") + "bias"
    weight, added = IMAGENET.restated(tensors[kernel], tensors[bias], old)
    note = f"trained with mean {list(old.mean)} and deviation {list(old.std)}: taken into the patch embedding"
    return {**tensors, kernel: weight, bias: added}, [note]


def _linear(settings: dict[str, Any], folder: Path) -> tuple[float, Tensor, Tensor]:
    """Return factor, means and deviations of a preprocessing, with transformers' defaults for missing ones."""
    kind = next((settings[key] for key in _TYPES if settings.get(key)), "VideoMAE")
    factor, mean, std = (settings.get(name) for name in ("rescale_factor", "image_mean", "image_std"))
    normal = settings.get("do_normalize", True)
    for name in ("do_normalize", "do_rescale"):
        if not isinstance(settings.get(name, True), int | None):  # JSON's true and false are int
            raise ValueError(f"{folder}: preprocessing: {name}: found {settings[name]!r}, wanted true or false")
    if normal and None in (mean, std) and not str(kind).startswith("VideoMAE"):
        raise ValueError(f"{folder}: preprocessing: {kind} without image_mean and image_std: write both into its file")
    try:
        mean_C, std_C = (
            torch.tensor((unsaid if one is None else one) if normal else none, dtype=torch.float64).expand(3)
            for one, unsaid, none in ((mean, _UNSAID, 0.0), (std, _UNSAID, 1.0))
        )
        factor = (1 / 255 if factor is None else float(factor)) if settings.get("do_rescale", True) else 1.0
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{folder}: preprocessing: wanted three means, three deviations and a factor, found {mean}, {std} and "
            f"{factor}"
        ) from None
    if not (std_C > 0).all():
        raise ValueError(f"{folder}: preprocessing: wanted three means and three deviations above 0")
    return factor, mean_C, std_C


def _said(folder: Path) -> dict[str, Any] | None:
    """Return the first preprocessing in the folder's files, None without any."""
    for file in (folder / name for name in _FILES):
        if not file.is_file():
            continue
        found = json_object(file, finite=True)
        inner = found.get("video_processor") or found.get("image_processor") or found
        if not isinstance(inner, dict):
            raise ValueError(f"{file}: preprocessing: wanted an object of settings, found {type(inner).__name__}")
        if {"image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor", *_TYPES} & inner.keys():
            return dict(inner)
    return None
