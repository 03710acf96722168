"""Reading of videos as tensors, and checks of such tensors.

Shapes: B clips, V views of a video, T frames, H W pixels.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from tgm_scale.data.video.frame_times import DecodeError
from tgm_scale.evaluation.views import Views, decode_views
from tgm_scale.python.arguments import existing, whole_number

Source = str | os.PathLike[str] | bytes  # a file, or its contents


def read_video(
    source: Source, frames: int = 16, size: int = 224, stride: int = 4, windows: int = 1, squares: int = 1
) -> Tensor:
    """Read clips of a video: uint8 RGB [V, 3, frames, size, size] with V = windows * squares, window by window.

    source: a file, or its bytes. Each window has `frames` frames, `stride` apart, from the first to the last that fits
    (one: the middle one); the squares of the short side lie from one end of the long side to the other (one: the
    centre).

    Raises ValueError for a video that cannot be decoded and for counts below 1, OSError for a file that cannot be
    read."""
    counts = {"frames": frames, "size": size, "stride": stride, "windows": windows, "squares": squares}
    frames, size, stride, windows, squares = (whole_number(name, value) for name, value in counts.items())
    return read_views(source, Views(frames, size, stride, temporal=windows, spatial=squares))


def read_views(source: Source, views: Views) -> Tensor:
    """Read these views of a video. Raises as `read_video`."""
    data = source if isinstance(source, bytes) else existing("source", source).read_bytes()
    try:
        return decode_views(data, views)
    except DecodeError as error:
        name = "the video" if isinstance(source, bytes) else os.fspath(source)
        raise ValueError(f"{name}: {error}") from None


def checked(video: Any, frames: int | None = None, size: int | None = None) -> Tensor:
    """Return the video if it is uint8 [B, 3, T, H, H], with these frames and this size if given.

    Raises ValueError that states what it is."""
    wanted = f"uint8 RGB [B, 3, {frames or 'T'}, {size or 'H'}, {size or 'H'}]"
    if not isinstance(video, Tensor):
        raise ValueError(f"video: wanted a tensor, {wanted}, found {type(video).__name__}")
    shape = tuple(video.shape)
    fits = len(shape) == 5 and shape[1] == 3 and shape[3] == shape[4] and min(shape) > 0
    fits = fits and shape[2] == (frames or shape[2]) and shape[3] == (size or shape[3])
    if video.dtype != torch.uint8 or not fits:
        raise ValueError(f"video: wanted {wanted}, found {str(video.dtype).removeprefix('torch.')} {list(shape)}")
    return video
