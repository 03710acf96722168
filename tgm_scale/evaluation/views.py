"""Fixed views of a video for tests: V windows in time by S squares in space, without randomness.

Shapes: V windows, S squares, T frames; H W pixels of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tgm_scale.contracts import Problem
from tgm_scale.data.shards.index import Corpus, SampleRef
from tgm_scale.data.shards.read_ahead import Members, read_ahead
from tgm_scale.data.video.decode import DecodeError, Video, segments, window
from tgm_scale.data.video.transforms import Crop, standardised
from tgm_scale.runtime.processes import Crashed, OrderedPool

_LAST = 1 - 2**-20  # a draw that picks the last start of a window


@dataclass(frozen=True)
class Views:
    """The clips of a video that are evaluated: `temporal` x `spatial` of them.

    dense: windows of frames `stride` apart, from the first to the last that fits (one: the middle one).
    segments: one frame of each of `frames` equal parts, window v at the share (v + 0.5) / temporal of its part (TSN).
    Squares of the short side lie from one end of the long side to the other (one: the centre). standardise: each clip
    is brought to one brightness and contrast (see `transforms.standardised`)."""

    frames: int
    size: int
    stride: int
    sampling: Literal["dense", "segments"] = "dense"
    temporal: int = 1
    spatial: int = 1
    standardise: bool = False

    def __len__(self) -> int:
        return self.temporal * self.spatial

    def described(self) -> str:
        """Return a description for results."""
        where = f"one of each {self.frames}th of the video" if self.sampling == "segments" else f"{self.stride} apart"
        clip = f"{self.frames} frames of {self.size} pixels, {where}{', standardised' if self.standardise else ''}"
        return f"{self.temporal} windows x {self.spatial} squares, each {clip}"

    def indices(self, count: int) -> np.ndarray:
        """Return the frames of each window of a source of `count` frames, int64 [V, T]."""
        rows = []
        for v in range(self.temporal):
            if self.sampling == "segments":
                rows.append(segments(count, [(v + 0.5) / self.temporal] * self.frames))
            else:
                draw = 0.5 if self.temporal == 1 else min(v / (self.temporal - 1), _LAST)
                rows.append(window(count, self.frames, self.stride, draw))
        return np.stack(rows)

    def squares(self, height: int, width: int) -> list[Crop]:
        """Return the S squares of a frame."""
        side, rest = min(height, width), abs(height - width)
        places = [rest // 2] if self.spatial == 1 else [rest * s // (self.spatial - 1) for s in range(self.spatial)]
        down = height > width
        return [Crop(place if down else 0, 0 if down else place, side, side, False, height, width) for place in places]


def decode_views(data: bytes, views: Views) -> Tensor:
    """Decode the views of an encoded video, window by window: uint8 [V * S, 3, T, size, size]. Raises DecodeError."""
    with Video(data) as video:
        indices_VT = views.indices(video.count)
        distinct, places = np.unique(indices_VT, return_inverse=True)
        squares: list[Crop] = []
        cuts: list[np.ndarray] = []
        for k, (_, image) in enumerate(video.frames(distinct)):
            if not squares:
                squares = views.squares(*image.shape[:2])
                cuts = [np.empty((len(distinct), s.height, s.width, 3), np.uint8) for s in squares]
            for square, cut in zip(squares, cuts):
                cut[k] = square.cut(image)
    resized_SKhw3 = torch.stack([square.resize(cut, views.size) for square, cut in zip(squares, cuts)])
    places_VT = torch.from_numpy(places.reshape(indices_VT.shape))
    clips_VThw3 = resized_SKhw3[:, places_VT].transpose(0, 1).flatten(0, 1)
    if views.standardise:
        clips_VThw3 = torch.stack([standardised(clip_Thw3) for clip_Thw3 in clips_VThw3])
    return clips_VThw3.permute(0, 4, 1, 2, 3).contiguous()


@dataclass(frozen=True)
class Decoding:
    """Decoding options: the views, the number of processes (0: this one), and a callback for each sample done."""

    views: Views
    workers: int = 0
    progress: Callable[[int], None] = lambda samples: None


class Decoder:
    """Decoder of the views of samples, in order; a context manager."""

    def __init__(self, decoding: Decoding) -> None:
        self.views, self._progress = decoding.views, decoding.progress
        self._pool = OrderedPool(decoding.workers) if decoding.workers else None

    def decode(self, corpus: Corpus, refs: Sequence[SampleRef]) -> Iterator[Tensor | Problem]:
        """Yield the views of each sample, or the reason why it has none. Raises OSError if a shard cannot be read."""
        inputs = ((_video(ref, found), self.views) for ref, found in read_ahead(corpus, refs))
        results = self._pool.map(_decode, inputs) if self._pool else (_decode(*one) for one in inputs)
        for ref, found in zip(refs, results):
            self._progress(1)
            if isinstance(found, Crashed):
                yield Problem(ref.name, "crashed", str(found))
            elif isinstance(found, Problem):
                yield found
            elif isinstance(found, DecodeError):
                yield Problem(ref.name, found.reason, found.detail)
            elif isinstance(found, Exception):
                raise found
            else:
                yield torch.from_numpy(found)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool:
            self._pool.__exit__(*exception)


def _video(ref: SampleRef, found: Members) -> bytes | Problem:
    return found if isinstance(found, Problem) else found[ref.video]


def _decode(data: bytes | Problem, views: Views) -> np.ndarray | DecodeError | Problem:
    if isinstance(data, Problem):
        return data
    try:
        return decode_views(data, views).numpy()  # an array: tensors would travel through shared memory
    except DecodeError as error:
        return error
