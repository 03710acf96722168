"""Videos whose pixels people annotated: frames and the share of each token that shows the object.

For `NAME.mp4` (or another container) the truth is one of, in the folder of masks:
- `NAME.masks.npz`: `packed`, np.packbits along the last axis of the boolean [frames, height, width], and `shape`;
- `NAME/`: one picture a frame in order of names, as DAVIS has them: any value but 0 is the object;
- `NAME.boxes.json`: a list with, for each frame, a list of boxes [left, top, right, bottom] in pixels.

Shapes: T frames, H W pixels, S slots, R rows, C columns of the token grid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.data.decode import DecodeError, Video, window
from tgm_scale.data.motion import MotionRecorder
from tgm_scale.data.transforms import draw_crop

VIDEOS = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v"}


@dataclass(frozen=True)
class AnnotatedClip:
    """A clip after a centre crop."""

    name: str  # of the video
    video: Tensor  # uint8 [3, T, H, W]
    object_SRC: Tensor  # float32: share of each token's pixels that show the object
    object_THW: Tensor  # bool, at the clip's size
    motion_SRC: Tensor  # float32; all 0 where the stream has no vectors


def find(videos: Path, masks: Path) -> list[tuple[Path, Path]]:
    """The videos that have a truth, and where it is. Raises ValueError where there is none."""
    if not videos.is_dir() or not masks.is_dir():
        missing = videos if not videos.is_dir() else masks
        raise ValueError(f"{missing}: no such folder")
    files = sorted(file for file in videos.iterdir() if file.suffix.lower() in VIDEOS)
    pairs = []
    for file in files:
        truths = [masks / f"{file.stem}.masks.npz", masks / f"{file.stem}.boxes.json", masks / file.stem]
        pairs += [(file, truth) for truth in truths if truth.exists()][:1]
    if not pairs:
        raise ValueError(
            f"{masks}: none of the {len(files)} videos in {videos} has NAME.masks.npz, NAME.boxes.json or a folder "
            "NAME of pictures there"
        )
    return pairs


def clips(
    file: Path, truth: Path, count: int, frames: int, stride: int, size: int, grid: Grid
) -> Iterator[AnnotatedClip]:
    """`count` clips from even places of a video; those in which the object is never seen are left out.

    Raises ValueError where the truth does not fit the video."""
    try:
        for number in range(count):
            recorder = MotionRecorder()
            with Video(file.read_bytes(), recorder) as video:
                indices = window(video.count, frames, stride, (number + 0.5) / count)
                images = dict(video.frames(np.unique(indices)))
                length = video.count
            height, width, _ = next(iter(images.values())).shape
            shown_THW = _read_truth(truth, length, height, width)[indices]
            crop = draw_crop("center", height, width, 0, flip=False)
            cut_Thw3 = np.stack([crop.cut(images[index]) for index in indices.tolist()])
            cut_Thw = shown_THW[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            object_SRC = token_share(cut_Thw, grid)
            if not object_SRC.any():
                continue
            motion = recorder.slots(indices, grid.slots)
            blank = torch.zeros(grid.slots, grid.rows, grid.columns)
            yield AnnotatedClip(
                file.stem,
                crop.resize(cut_Thw3, size).permute(3, 0, 1, 2),
                object_SRC,
                F.interpolate(torch.from_numpy(cut_Thw)[None].float(), (size, size), mode="nearest")[0] > 0.5,
                blank if motion is None else crop.resample(motion, grid.rows, grid.columns),
            )
    except DecodeError as error:
        raise ValueError(f"{file}: {error}") from None


def token_share(shown_THW: np.ndarray, grid: Grid) -> Tensor:
    """Share of each token's pixels that is true: float32 [S, R, C], of a bool [T, H, W] of any size."""
    shares_TRC = F.adaptive_avg_pool2d(
        torch.from_numpy(np.ascontiguousarray(shown_THW)).float(), (grid.rows, grid.columns)
    )
    return shares_TRC.unflatten(0, (grid.slots, -1)).mean(dim=1)


def _read_truth(truth: Path, frames: int, height: int, width: int) -> np.ndarray:
    """bool [frames, height, width]."""
    if truth.suffix == ".npz":
        with np.load(truth, allow_pickle=False) as fields:
            shown = np.unpackbits(fields["packed"], axis=-1)[..., : int(fields["shape"][2])].astype(bool)
    elif truth.suffix == ".json":
        shown = np.zeros((frames, height, width), bool)
        boxes = json.loads(truth.read_text())
        for picture, listed in zip(shown, boxes):
            for left, top, right, bottom in listed or []:
                picture[max(round(top), 0) : round(bottom), max(round(left), 0) : round(right)] = True
        shown = shown[: len(boxes)]
    else:
        pictures = sorted(file for file in truth.iterdir() if file.suffix.lower() in (".png", ".bmp", ".gif"))
        shown = np.stack([np.asarray(Image.open(file)).reshape(height, width, -1).any(-1) for file in pictures])
    if shown.shape != (frames, height, width):
        raise ValueError(f"{truth}: the truth is {shown.shape}, the video {(frames, height, width)} frames and pixels")
    return shown
