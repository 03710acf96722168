"""Unusual videos through the whole loader, named in a list; what is not among the real ones is encoded here."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from loading import clip_loader

from tgm_scale.contracts import Batch, Grid
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.decode import Video

GOOD = {  # what is unusual about each, and its upright height and width
    "av1_video.mkv": ("AV1", None),
    "h265_video.mp4": ("HEVC", None),
    "h264_10bits.mp4": ("10 bits", (200, 200)),
    "nasa_13013.mp4": ("two video streams", (270, 480)),
    "video_0.mov": ("three frames", (320, 568)),
    "video_90.mov": ("turned by a quarter", (568, 320)),
    "video_180.mov": ("turned by a half", (320, 568)),
    "unordered.mov": ("boxes out of order", None),
    "part_0.mp4": ("a part of a stream", None),
    "carphone_distorted.mp4": ("very low rate", None),
    "newtonscradle.gif": ("GIF of varying rate", (150, 200)),
}
BROKEN = {
    "corrupted.mp4": "damaged",
    "truncated.mp4": "truncated",
    "empty.mp4": "empty",
    "text_not_video.mp4": "not_a_video",
}


def load(path: Path, count: int, size: int = 32) -> Batch:
    """All of a list's videos in one batch."""
    loader = clip_loader(
        [open_corpus(str(path))],
        frames=8,
        stride=2,
        size=size,
        grid=Grid.of(8, size, 2, 16),
        seed=0,
        global_batch_size=count,
        micro_batch_size=count,
        rank=0,
        world_size=1,
        workers=0,
        stop_step=1,
        crop="center",
    )
    [(_, [batch])] = list(loader)
    return batch


@pytest.fixture(scope="module")
def edge(real: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Batch]:
    """Named relative to the list: a key with this machine's folders in it would draw each clip's start anew on every
    machine, and `corrupted.mp4` has intact stretches."""
    path = tmp_path_factory.mktemp("edge") / "edge.txt"
    (path.parent / "videos").symlink_to(real / "edge")
    path.write_text("".join(f"videos/{name} a caption\n" for name in [*GOOD, *BROKEN]))
    return real / "edge", load(path, len(GOOD) + len(BROKEN))


@pytest.mark.parametrize("name", GOOD)
def test_an_unusual_video_becomes_a_clip(edge: tuple[Path, Batch], name: str) -> None:
    """The centre of its upright frames, in its place: near the middle of a frame that plain PyAV shows."""
    folder, batch = edge
    slot = batch.keys.index(f"videos/{name}")
    assert batch.weight[slot] == 1
    _, left, height, width, _ = batch.crops[slot].tolist()
    if GOOD[name][1] is not None:
        side = min(GOOD[name][1])
        assert (height, width) == (side, side) and left == (GOOD[name][1][1] - side) // 2
    with Video((folder / name).read_bytes()) as video:
        first = round(float(batch.starts[slot]) * float(video.rate))
        [(_, image)] = video.frames([first])
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(image[top : top + side, left : left + side])).permute(2, 0, 1)
    wanted = torch.nn.functional.interpolate(square[None].float(), (32, 32), mode="area")[0]
    assert (batch.video[slot, :, 0].float() - wanted).abs().mean() < 6


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_video_keeps_its_place(edge: tuple[Path, Batch], name: str) -> None:
    _, batch = edge
    key = f"videos/{name}"
    assert batch.weight[batch.keys.index(key)] == 0
    assert {problem.key: problem.reason for problem in batch.problems}[key] == BROKEN[name]


def pictures(height: int, width: int) -> np.ndarray:
    """uint8 [12, H, W, 3]: four coloured quarters whose brightness rises."""
    frames = np.zeros((12, height, width, 3), np.uint8)
    for number, frame in enumerate(frames):
        level = 60 + 12 * number
        frame[: height // 2, : width // 2] = (level, 30, 30)
        frame[: height // 2, width // 2 :] = (30, level, 30)
        frame[height // 2 :, : width // 2] = (30, 30, level)
        frame[height // 2 :, width // 2 :] = level
    return frames


def encoded(codec: str, container: str, pixels: str, height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.thread_count = 1
        for image in pictures(height, width):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("codec", "container", "pixels", "height", "width"),
    [
        ("libvpx-vp9", "webm", "yuv420p", 64, 96),
        ("libvpx-vp9", "webm", "yuv420p", 61, 97),
        ("libvpx", "webm", "yuv420p", 64, 96),
        ("libx265", "mp4", "yuv420p10le", 64, 96),
        ("libx264", "mkv", "yuv444p", 63, 97),
        ("mpeg4", "avi", "yuv420p", 63, 97),
        ("mjpeg", "mov", "yuvj420p", 64, 98),
        ("flv1", "flv", "yuv420p", 64, 96),
    ],
)
def test_codecs_and_odd_sizes(
    tmp_path: Path, codec: str, container: str, pixels: str, height: int, width: int
) -> None:
    names = {"mkv": "matroska"}
    try:
        data = encoded(codec, names.get(container, container), pixels, height, width)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV does not encode {codec}: {error}")
    (tmp_path / f"v.{container}").write_bytes(data)
    (tmp_path / "list.txt").write_text(f"v.{container} a caption\n")
    batch = load(tmp_path / "list.txt", 1)
    assert batch.weight.tolist() == [1], batch.problems
    first = round(float(batch.starts[0]) * 25)
    for k in range(8):
        level = 60 + 12 * min(first + 2 * k, 11)
        frame = batch.video[0, :, k].float()
        for (y, x), colour in {(8, 8): (level, 30, 30), (8, 24): (30, level, 30), (24, 8): (30, 30, level)}.items():
            assert (frame[:, y, x] - torch.tensor(colour)).abs().max() < 25
