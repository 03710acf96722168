"""A trained encoder for videos.

Shapes: B clips, T frames, H W pixels, K tokens, D width of the encoder, V views of a file.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from tgm_scale.evaluation.features import FrozenEncoder
from tgm_scale.python.arguments import device_of, existing, told, whole_number
from tgm_scale.python.video import Source, checked, read_views


def load_encoder(
    path: str | os.PathLike[str],
    *,
    frames: int | None = None,
    size: int | None = None,
    device: str | torch.device = "cpu",
) -> VideoEncoder:
    """Load the encoder of a run folder, a checkpoint, or any file that `tgm-scale convert` reads, frozen.

    frames, size: of the clips that it will read; default: as in training. For others its positions are interpolated.
    Raises ValueError if there is no encoder, the shape does not fit the model, or the device is missing, and
    FileNotFoundError if the path does not exist."""
    shape = [
        None if value is None else whole_number(name, value) for name, value in (("frames", frames), ("size", size))
    ]
    place, found = device_of(device), existing("path", path)
    with told():
        return VideoEncoder(FrozenEncoder.load(found, place, *shape))


class VideoEncoder:
    """Encoder from videos to features, on its own device; bf16 on a GPU, fp32 on a CPU. Nothing is masked.

    Methods take a video as uint8 RGB [B, 3, frames, size, size] on any device, or a file, whose middle window and
    centre square are read (B = 1). Raises ValueError for another shape and for a file that cannot be decoded."""

    def __init__(self, frozen: FrozenEncoder) -> None:
        self._frozen = frozen

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self._frozen.frames

    @property
    def size(self) -> int:
        """Side of a clip's frames, in pixels."""
        return self._frozen.image_size

    @property
    def stride(self) -> int:
        """Distance in a file between a clip's frames, in frames: as in training, 4 if unknown."""
        return self._frozen.stride

    @property
    def sampling(self) -> str:
        """Frame sampling in training: "dense" (`stride` apart) or "segments" (one of each of `frames` equal parts)."""
        return self._frozen.sampling

    @property
    def standardise(self) -> bool:
        """Whether training clips had one brightness and contrast (data.standardise).

        `read` brings clips to it; a tensor is used unchanged."""
        return self._frozen.standardise

    @property
    def width(self) -> int:
        """D, the width of the encoder."""
        return self._frozen.size.width

    def __call__(self, video: Tensor | Source) -> Tensor:
        """Return the mean of all tokens after the last norm: float32 [B, D]."""
        return self._frozen(self._clips(video))

    def tokens(self, video: Tensor | Source) -> Tensor:
        """Return all tokens after the last norm, slot by slot, row by row: float32 [B, K, D]."""
        return self._frozen.tokens(self._clips(video))

    def read(self, source: Source, windows: int = 1, squares: int = 1) -> Tensor:
        """Read clips of a video as this encoder needs them: uint8 [V, 3, frames, size, size], as `read_video`.

        If trained on whole clips (data.sampling=segments), a clip has a frame of each of `frames` equal parts of the
        video; if trained with data.standardise, clips are brought to one brightness and contrast."""
        counts = {"windows": windows, "squares": squares}
        temporal, spatial = (whole_number(name, value) for name, value in counts.items())
        return read_views(source, self._frozen.views(temporal=temporal, spatial=spatial))

    def _clips(self, video: Tensor | Source) -> Tensor:
        if isinstance(video, (str, os.PathLike, bytes)):
            return self.read(video)
        return checked(video, self.frames, self.size)

    def __repr__(self) -> str:
        where = f"stride={self.stride}" if self.sampling == "dense" else f"sampling={self.sampling!r}"
        light = ", standardise=True" if self.standardise else ""
        return f"VideoEncoder(frames={self.frames}, size={self.size}, {where}, width={self.width}{light})"
