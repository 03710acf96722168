"""Baselines of a method, fitted to the same training clips and tested on the same test clips:

| name | model |
|---|---|
| raw pixels | ridge regression on grey pixels: 24 x 24 of 8 frames |
| random weights | a probe of the encoder with its initial weights |
| small CNN | `small_cnn`, supervised, on clips of 64 pixels |

Raw pixels and small CNN see one window of a clip, the middle one, and its centre square.

Shapes: N training clips, M test clips, B clips, T frames, S side in pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.data.access import patience
from tgm_scale.data.lists.selection import Role
from tgm_scale.evaluation import results, ridge, small_cnn
from tgm_scale.evaluation.cache import Clips, RowModel, cached_rows
from tgm_scale.evaluation.clips import own_samples, stopping_together
from tgm_scale.evaluation.labelled import LabelledCorpus
from tgm_scale.evaluation.probe import Validation, too_few
from tgm_scale.evaluation.session import PARTS
from tgm_scale.evaluation.views import Decoding, Views
from tgm_scale.runtime.distributed import HostCollectives
from tgm_scale.runtime.progress import ProgressBars

MOST_CLIPS = 5000  # training clips: pixels are kept in memory, and the ridge takes the cube of their number
_SIDE = 64
_RAW_SIDE, _RAW_FRAMES = 24, 8

Scores = Callable[[Clips, Tensor, Clips], Tensor]  # training clips, their class numbers, test clips -> [M, C]


@dataclass(frozen=True)
class Baseline:
    """A baseline: its description, the model of its rows, the fit that scores the test clips, and the views it
    reads."""

    what: str
    rows: RowModel
    scores: Scores
    views: Views


class Measured(NamedTuple):
    """Which test clips a baseline classifies correctly, and how long it took."""

    what: str
    right_M: Tensor
    clips: Clips
    seconds: float

    def beside(self, right_M: Tensor, keys: Sequence[str]) -> dict[str, Any]:
        """Return the entry of results.json, with the method's gain. right_M: whether it is right; keys: its test
        clips."""
        method = dict(zip(keys, right_M.tolist()))
        return {"what": self.what, "seconds": self.seconds, **results.compared(self.right_M, self.clips, method)}


@dataclass(frozen=True)
class Comparison:
    """Data of an evaluation, as baselines read it. folder: cache of the clips' rows."""

    folder: Path
    sources: Mapping[Role, LabelledCorpus]
    decoding: Decoding  # the method's own
    collectives: HostCollectives
    seed: int
    bars: ProgressBars

    def measure(self, baselines: Mapping[str, Baseline], classes: Sequence[str]) -> dict[str, Measured]:
        """Fit and test each baseline; return the results by name, empty except on the main process. Collective."""
        found = {}
        for name, baseline in baselines.items():
            began = time.monotonic()
            train, test = (self._clips(baseline, role, name) for role in PARTS)
            with stopping_together(self.collectives):
                if self.collectives.process.is_main:
                    truth_M, labels_N = (results.class_numbers(classes, clips.labels) for clips in (test, train))
                    right_M = baseline.scores(train, labels_N, test).argmax(1) == truth_M
                    found[name] = Measured(baseline.what, right_M, test, round(time.monotonic() - began, 1))
        return found

    def _clips(self, baseline: Baseline, role: Role, name: str) -> Clips:
        source, process = self.sources[role], self.collectives.process
        task = self.bars.task(f"{name}: clips of {role}", own_samples(source.refs, process.rank, process.world_size))
        decoding = replace(self.decoding, views=baseline.views, progress=task.advance)
        return cached_rows(self.folder, baseline.rows, source, decoding, self.collectives)


def refuse(key: str, labels: Sequence[str], share: float = 1.0) -> None:
    """Raise ValueError for fewer or more training clips than baselines are made for.

    key: the configuration key that asks for them; labels: of the training clips; share: data.share, which drew
    them."""
    clips = len(labels)
    if few := too_few(len(set(labels)), clips, share):
        raise ValueError(f"{key}=true: {few}: {'raise data.share, or ' * (share < 1)}leave it out")
    if clips > MOST_CLIPS:
        raise ValueError(
            f"{key}=true: baselines are for up to {MOST_CLIPS:,} training clips, whose pixels are kept in memory, and "
            f"there are {clips:,}: leave it out, or take fewer, by data.share"
        )


def of_pixels(comparison: Comparison) -> dict[str, Baseline]:
    """Return the baselines that read pixels."""
    views = replace(comparison.decoding.views, temporal=1, spatial=1)
    side, seed, device = min(_SIDE, views.size), comparison.seed, comparison.collectives.process.device
    model = RowModel(partial(_pixels, side=side), nn.Identity(), ("pixels", str(side)), torch.uint8)

    def video(clips: Clips) -> Tensor:
        return clips.features[0].unflatten(1, (3, views.frames, side, side))

    def raw(train: Clips, labels_N: Tensor, test: Clips) -> Tensor:
        numbers = (_raw(video(clips)) for clips in (train, test))
        return ridge.scores(next(numbers), labels_N, next(numbers), Validation(seed, train.groups))[0]

    def cnn(train: Clips, labels_N: Tensor, test: Clips) -> Tensor:
        task = comparison.bars.task("small CNN: epochs", small_cnn.EPOCHS)

        def progress(epochs: int) -> None:
            patience.stop_where_asked("the training of the small CNN")
            task.advance(epochs)

        return small_cnn.scores(video(train), labels_N, video(test), seed, device, progress)

    frames = min(_RAW_FRAMES, views.frames)
    return {
        "raw pixels": Baseline(
            f"ridge regression on grey pixels, {_RAW_SIDE} x {_RAW_SIDE} of {frames} frames", model, raw, views
        ),
        "small CNN": Baseline(
            f"five 3D convolutions, {small_cnn.EPOCHS} epochs, {views.frames} frames of {side} pixels",
            model,
            cnn,
            views,
        ),
    }


def _pixels(video_B3THW: Tensor, side: int) -> Tensor:
    """Return the clips resized to this side, [B, 3 * T * S * S], whole numbers."""
    frames = video_B3THW.flatten(1, 2).float()
    if frames.shape[-1] != side:
        frames = F.interpolate(frames, (side, side), mode="bilinear", antialias=True).round().clamp(0, 255)
    return frames.flatten(1)


def _raw(video_N3TSS: Tensor) -> Tensor:
    """Return the grey pixels of some frames, concatenated, [N, D]."""
    count = video_N3TSS.shape[2]
    chosen = torch.linspace(0, count - 1, min(_RAW_FRAMES, count)).round().long()
    grey_NTSS = torch.cat([part[:, :, chosen].float().mean(1) for part in video_N3TSS.split(256)])
    return F.interpolate(grey_NTSS, (_RAW_SIDE, _RAW_SIDE), mode="bilinear", antialias=True).flatten(1)
