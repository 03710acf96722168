"""Models that were trained on pixels normalised by other statistics than ImageNet's, which ours all are.

Shapes: D width, C channels, t, p, p of the patch embedding's kernel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD

_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_KERNEL = "patch_embeddings.projection"
_CLOSE = 1e-6


def into_patch_embedding(tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """A transformers folder's weights for pixels normalised by ImageNet's statistics; a line where theirs differ.

    Its preprocessing is (x * factor - mean) / std, ours (x / 255 - mean') / std': one is linear in the other, channel
    by channel, and so goes into weight and bias of the patch embedding, up to rounding. Raises ValueError for
    a deviation of 0."""
    said = _said(folder)
    kernel = next((name for name in tensors if name.endswith(f"{_KERNEL}.weight")), None)
    if said is None or kernel is None:
        return dict(tensors), []
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    normal = said.get("do_normalize", True)
    mean_C, std_C = (
        torch.tensor(said.get(name, ours) if normal else other, dtype=torch.float64)
        for name, ours, other in (
            ("image_mean", IMAGENET_MEAN, [0.0] * 3),
            ("image_std", IMAGENET_STD, [1.0] * 3),
        )
    )
    if mean_C.shape != (3,) or std_C.shape != (3,) or not std_C.all():
        raise ValueError(f"{folder}: preprocessing: wanted three means and three deviations above 0")
    our_mean_C, our_std_C = (torch.tensor(x, dtype=torch.float64) for x in (IMAGENET_MEAN, IMAGENET_STD))
    scale_C, shift_C = 255 * factor * our_std_C / std_C, (255 * factor * our_mean_C - mean_C) / std_C
    if (scale_C - 1).abs().max() < _CLOSE and shift_C.abs().max() < _CLOSE:
        return dict(tensors), []
    bias = kernel.removesuffix("weight") + "bias"
    weight_DCtpp = tensors[kernel].double()
    more_D = (weight_DCtpp.sum((2, 3, 4)) * shift_C).sum(1)
    scaled = {kernel: (weight_DCtpp * scale_C[:, None, None, None]).float(), bias: (tensors[bias] + more_D).float()}
    note = f"trained with mean {mean_C.tolist()} and deviation {std_C.tolist()}: taken into the patch embedding"
    return {**tensors, **scaled}, [note]


def _said(folder: Path) -> dict[str, Any] | None:
    """The first preprocessing that the folder's files have."""
    for file in (folder / name for name in _FILES):
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file}: not JSON ({error})") from None
        inner = found.get("video_processor") or found.get("image_processor") or found
        if {"image_mean", "do_normalize", "do_rescale", "rescale_factor"} & inner.keys():
            return dict(inner)
    return None
