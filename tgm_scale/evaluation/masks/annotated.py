"""Videos with annotated pixels: frames, and the share of each token that shows the object.

For `NAME.mp4` (or another container) the folder of masks holds the truth as one of:
- `NAME.masks.npz`: `packed`, np.packbits along the last axis of the boolean [frames, height, width], and `shape`;
- `NAME/`: one picture a frame in order of names, as in DAVIS: any value but 0 is the object;
- `NAME.boxes.json`: a list with, for each frame, a list of boxes [left, top, right, bottom] in pixels.

Shapes: T frames, H W pixels, S slots, R rows, C columns of the token grid.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated as Noted

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from tgm_scale.contracts import Grid, Problem
from tgm_scale.data.access.addresses import split_extension
from tgm_scale.data.building.annotations import captions_of
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.shards.inventory import Inventory
from tgm_scale.data.video.decode import DecodeError, Video, segments, window
from tgm_scale.data.video.motion import MotionRecorder
from tgm_scale.data.video.transforms import draw_crop, standardised
from tgm_scale.runtime.files import like
from tgm_scale.runtime.outside.arrays import fields_of, picture_of
from tgm_scale.runtime.outside.json_text import json_file, json_object

_FORMS = "NAME.masks.npz, NAME.boxes.json or a folder NAME of pictures"
_PICTURES = (".png", ".bmp", ".gif")
_FORMATS = ("PNG", "BMP", "GIF")
_Side = Noted[float, Field(strict=True, allow_inf_nan=False)]
_BOXES = TypeAdapter(list[list[Noted[list[_Side], Field(min_length=4, max_length=4)]] | None])


@dataclass(frozen=True)
class AnnotatedClip:
    """A clip after a centre crop, with its object and motion."""

    name: str  # of the video
    video: Tensor  # uint8 [3, T, H, W]
    object_SRC: Tensor  # float32: share of each token's pixels that show the object
    object_THW: Tensor  # bool, at the clip's size
    motion_SRC: Tensor  # float32; all 0 if the stream has no motion vectors


@dataclass
class Annotated:
    """Videos with their truths and captions, and the files of the folders that could not be used."""

    pairs: list[tuple[Path, Path]]  # video, its truth
    captions: dict[str, str]  # by the video's name
    problems: list[Problem]

    def inventory(self, listed: str = "") -> Inventory:
        with_caption = sum(file.stem in self.captions for file, _ in self.pairs)
        layout = f"videos with a truth, {with_caption} of them with a caption"
        return Inventory.of("videos", len(self.pairs), self.problems, layout=layout, listed=listed)

    def leave_out(self, file: Path, reason: str, detail: str) -> None:
        """Record a video that turns out to be unusable."""
        self.pairs = [pair for pair in self.pairs if pair[0] != file]
        self.problems.append(Problem(file.name, reason, detail))


def find(videos: Path, masks: Path, captions: Path | None = None) -> Annotated:
    """Find the videos that have a truth. captions: a file (default: captions.json in the videos' folder, if it
    exists).

    Left out: `no_truth`, `ambiguous` (two videos of one name), `missing_video` (a truth without a video). Raises
    ValueError if nothing is left, and for an invalid file of captions."""
    if not videos.is_dir() or not masks.is_dir():
        missing = videos if not videos.is_dir() else masks
        raise ValueError(f"{missing}: no such folder{like(missing)}")
    files = sorted(file for file in videos.iterdir() if split_extension(file.name)[1] and file.is_file())
    names = Counter(file.stem for file in files)
    found = Annotated([], _captions(captions, videos / "captions.json"), [])
    for file in files:
        truths = [masks / f"{file.stem}.masks.npz", masks / f"{file.stem}.boxes.json", masks / file.stem]
        truth = next((truth for truth in truths if truth.exists()), None)
        if names[file.stem] > 1:
            found.problems.append(Problem(file.name, "ambiguous", f"{names[file.stem]} videos are called {file.stem}"))
        elif truth is None:
            found.problems.append(Problem(file.name, "no_truth", f"{masks} has no {_FORMS}"))
        else:
            found.pairs.append((file, truth))
    for truth in sorted(masks.iterdir()):
        if (name := _truth_of(truth)) is not None and name not in names:
            found.problems.append(Problem(truth.name, "missing_video", f"{videos} has no video {name}"))
    if not found.pairs:
        raise ValueError(f"{masks}: none of the {len(files)} videos in {videos} has {_FORMS} there")
    return found


def _truth_of(place: Path) -> str | None:
    """Return the name of the video whose truth this is; None if it is not a truth."""
    for end in (".masks.npz", ".boxes.json"):
        if place.name.endswith(end):
            return place.name.removesuffix(end)
    return place.name if place.is_dir() and any(one.suffix.lower() in _PICTURES for one in place.iterdir()) else None


def _captions(given: Path | None, default: Path) -> dict[str, str]:
    file = given or default
    if not file.is_file():
        if given:
            raise ValueError(f"--captions {given}: no such file{like(given)}")
        return {}
    said = json_object(file, f"--captions {file}")
    members = {name: {"json": json.dumps({"caption": one}).encode()} for name, one in said.items()}
    return {name: texts[0] for name, of_one in members.items() if (texts := captions_of(of_one))}


def clips(file: Path, truth: Path, count: int, sampling: Sampling) -> Iterator[AnnotatedClip]:
    """Yield `count` clips from evenly spaced places of a video; clips that never show the object are left out.

    Raises DecodeError for the video, with reason `bad_truth` for a truth that cannot be read or does not fit it."""
    data, grid = file.read_bytes(), sampling.grid
    for number in range(count):
        recorder = MotionRecorder()
        with Video(data, recorder) as video:
            place = (number + 0.5) / count
            if sampling.segments:
                indices = segments(video.count, [place] * sampling.frames)
            else:
                indices = window(video.count, sampling.frames, sampling.stride, place)
            images = dict(video.frames(np.unique(indices)))
            length = video.count
        height, width, _ = next(iter(images.values())).shape
        try:
            shown_THW = _read_truth(truth, length, height, width)[indices]
        except (OSError, ValueError) as error:  # both name the file
            raise DecodeError("bad_truth", str(error)) from None
        crop = draw_crop("center", height, width, 0, flip=False)
        cut_Thw3 = np.stack([crop.cut(images[index]) for index in indices.tolist()])
        cut_Thw = shown_THW[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        object_SRC = token_share(cut_Thw, grid)
        if not object_SRC.any():
            continue
        motion = recorder.slots(indices, grid.slots)
        clip_Thw3 = crop.resize(cut_Thw3, sampling.size)
        blank = torch.zeros(grid.slots, grid.rows, grid.columns)
        square = (sampling.size, sampling.size)
        yield AnnotatedClip(
            file.stem,
            (standardised(clip_Thw3) if sampling.standardise else clip_Thw3).permute(3, 0, 1, 2),
            object_SRC,
            F.interpolate(torch.from_numpy(cut_Thw)[None].float(), square, mode="nearest")[0] > 0.5,
            blank if motion is None else crop.resample(motion, grid.rows, grid.columns),
        )


def token_share(shown_THW: np.ndarray, grid: Grid) -> Tensor:
    """Return the share of each token's pixels that is true: float32 [S, R, C], for a bool [T, H, W] of any size."""
    shares_TRC = F.adaptive_avg_pool2d(
        torch.from_numpy(np.ascontiguousarray(shown_THW)).float(), (grid.rows, grid.columns)
    )
    return shares_TRC.unflatten(0, (grid.slots, -1)).mean(dim=1)


def _read_truth(truth: Path, frames: int, height: int, width: int) -> np.ndarray:
    """Read a truth as bool [frames, height, width]. Raises ValueError that names the file and the mistake in it."""
    shape = (frames, height, width)
    if truth.suffix == ".npz":
        return _packed(truth, shape)
    if truth.suffix == ".json":
        return _boxed(truth, shape)
    pictures = sorted(file for file in truth.iterdir() if file.suffix.lower() in _PICTURES)
    _refuse_other(truth, (len(pictures), height, width), shape)
    return np.stack(
        [picture_of(file, _FORMATS, (height, width)).reshape(height, width, -1).any(-1) for file in pictures]
    )


def _refuse_other(truth: Path, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if found != shape:
        raise ValueError(f"{truth}: the truth is {found}, the video {shape} frames and pixels")


def _packed(truth: Path, shape: tuple[int, int, int]) -> np.ndarray:
    frames, height, width = shape
    said, packed = fields_of(truth, ("shape", "packed"), largest=frames * height * -(-width // 8))
    if said.dtype.kind not in "iu" or said.shape != (3,):
        raise ValueError(f"{truth}: field shape: wanted frames, height and width, whole numbers; found {said!r:.80}")
    _refuse_other(truth, tuple(said.tolist()), shape)
    if packed.dtype != np.uint8 or packed.shape != (frames, height, -(-width // 8)):
        raise ValueError(
            f"{truth}: field packed: wanted bytes (uint8) {(frames, height, -(-width // 8))}, as np.packbits along "
            f"the last axis gives them; found {packed.dtype} {packed.shape}"
        )
    return np.unpackbits(packed, axis=-1)[..., :width].astype(bool)


def _boxed(truth: Path, shape: tuple[int, int, int]) -> np.ndarray:
    _, height, width = shape
    try:
        listed = _BOXES.validate_python(json_file(truth))
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(f"{word} {at}" for word, at in zip(("frame", "box", "side"), first["loc"]))
        raise ValueError(
            f"{truth}: {place + ': ' if place else ''}{first['msg']}; wanted for each frame a list of boxes [left, "
            "top, right, bottom], in pixels"
        ) from None
    _refuse_other(truth, (len(listed), height, width), shape)
    shown = np.zeros(shape, bool)
    for picture, boxes in zip(shown, listed):
        for left, top, right, bottom in boxes or []:
            picture[max(round(top), 0) : max(round(bottom), 0), max(round(left), 0) : max(round(right), 0)] = True
    return shown
