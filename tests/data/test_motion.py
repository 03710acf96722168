"""Codec motion against pictures whose motion is known: signs, distances of references, skipped frames, the camera."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from loading import clip_loader

from tgm_scale.contracts import Grid
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.decode import Video
from tgm_scale.data.video.motion import MotionRecorder, camera_motion
from tgm_scale.data.video.pictures import Orientation
from tgm_scale.data.video.transforms import Crop

SIDE, CELLS = 128, 16
ENCODERS = {
    "one reference": {"preset": "veryfast", "bf": "0", "refs": "1", "g": "12"},
    "no reference within the B-frames": {"preset": "medium", "bf": "3", "refs": "1", "b-pyramid": "none", "g": "250"},
    "B-frames that are referred to": {"preset": "medium", "bf": "3", "refs": "4", "b-pyramid": "normal", "g": "250"},
}


def picture(size: int, seed: int) -> np.ndarray:
    """Smooth texture, uint8 [size, size]: blocks of it match in one place only."""
    coarse = torch.rand(1, 1, size // 5, size // 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[0, 0]
    return (fine * 255).clamp(0, 255).to(torch.uint8).numpy()


def scene(frames: int, camera: tuple[int, int], thing: tuple[int, int]) -> np.ndarray:
    """uint8 [T, SIDE, SIDE, 3]: a picture that moves by `camera` (x, y) a frame, and on it a square of 48 pixels from
    (16, 40) on that moves by `thing`."""
    ground, square = picture(SIDE + 160, 1), picture(48, 2)
    made = []
    for t in range(frames):
        left, top = 80 - camera[0] * t, 80 - camera[1] * t
        frame = ground[top : top + SIDE, left : left + SIDE].copy()
        x, y = 16 + thing[0] * t, 40 + thing[1] * t
        frame[y : y + 48, x : x + 48] = square
        made.append(np.repeat(frame[..., None], 3, axis=-1))
    return np.stack(made)


def encoded(frames: np.ndarray, codec: str = "libx264", **options: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def recorded(data: bytes, indices: list[int]) -> MotionRecorder:
    recorder = MotionRecorder()
    with Video(data, recorder) as video:
        assert [index for index, _ in video.frames(np.unique(indices))] == sorted(set(indices))
    return recorder


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("thing", [(3, 0), (-3, 1), (1, -2)])
def test_velocities_have_the_right_sign_and_size(encoder: str, thing: tuple[int, int]) -> None:
    """In pixels a frame, whatever frames a vector reaches over and whether it points to the past or to the future."""
    frames = scene(16, (0, 0), thing if thing[0] > 0 else (0, 0))
    if thing[0] < 0:  # the other way round: the same film backwards
        frames = scene(16, (0, 0), (-thing[0], -thing[1]))[::-1]
    recorder = recorded(encoded(frames, **ENCODERS[encoder]), list(range(16)))
    velocities = recorder._velocities()
    assert len(velocities) >= 14
    right = []
    for index, (velocity_2yx, count_yx) in velocities.items():
        place = index if thing[0] > 0 else 15 - index
        step = thing if thing[0] > 0 else (-thing[0], -thing[1])
        x, y = (16 + step[0] * place) // 8 + 2, (40 + step[1] * place) // 8 + 2  # well inside the square
        assert count_yx[y : y + 2, x : x + 2].any()
        right.append(np.abs(velocity_2yx[:, y : y + 2, x : x + 2].mean((1, 2)) - thing).max() < 0.5)
        assert np.abs(velocity_2yx[:, -3:, -3:]).mean() < 0.2  # the ground stands still
    # with several references a P-frame may point past the nearest one, which its vectors do not say
    assert np.mean(right) >= (1.0 if encoder == "one reference" else 0.6), right


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("stride", [1, 4])
def test_motion_is_summed_over_skipped_frames_and_the_camera_taken_off(encoder: str, stride: int) -> None:
    """The square goes (2, 0), the camera takes the ground (-2, 1): 4.1 pixels a frame against the ground."""
    data = encoded(scene(18, (-2, 1), (2, 0)), **ENCODERS[encoder])
    indices = np.arange(2, 2 + 4 * stride, stride)
    speed_Syx = recorded(data, indices.tolist()).slots(indices, 2)
    assert speed_Syx is not None and speed_Syx.shape == (2, CELLS, CELLS)
    near = 0.15 if encoder == "one reference" else 0.4
    for slot, speed_yx in enumerate(speed_Syx):
        middle = int(indices[2 * slot : 2 * slot + 2].mean())
        x = (16 + 2 * middle) // 8 + 2
        assert speed_yx[7:9, x : x + 2].mean() == pytest.approx(stride * 17**0.5, rel=near)
        assert np.median(speed_yx) < 0.35 * stride  # what moves with the camera does not move


def test_the_camera_is_the_motion_of_most_cells() -> None:
    """Pan, zoom and turn are found under noise, a quarter of the cells going their own way."""
    row, column = np.meshgrid(np.arange(18), np.arange(32), indexing="ij")
    camera = np.stack([3 + 0.1 * column - 0.05 * row, -1 + 0.05 * column + 0.1 * row])
    moved = camera + np.random.default_rng(0).normal(0, 0.1, camera.shape)
    moved[:, 4:13, 8:24] += np.array([6.0, -4.0])[:, None, None]
    found = camera_motion(moved, np.ones((18, 32)), 1)
    assert np.abs(found - camera).max() < 0.25
    assert np.abs(moved.mean((1, 2))[:, None, None] - camera).max() > 1  # the mean would not do


def test_streams_without_vectors_have_none() -> None:
    frames = scene(8, (0, 0), (3, 0))
    for codec, options in (("libx264", {"g": "1"}), ("mjpeg", {}), ("libx265", {"x265-params": "log-level=none"})):
        try:
            data = encoded(frames, codec, **options)
        except (av.FFmpegError, ValueError):
            continue  # this build of ffmpeg has no such encoder
        assert recorded(data, list(range(8))).slots(np.arange(8), 4) is None, codec


def test_what_the_decoder_gives_does_not_change() -> None:
    data = encoded(scene(12, (1, 0), (3, 0)), **ENCODERS["B-frames that are referred to"])
    with Video(data) as plain, Video(data, MotionRecorder()) as watched:
        for (i, a), (j, b) in zip(plain.frames([3, 5, 9]), watched.frames([3, 5, 9]), strict=True):
            assert i == j and np.array_equal(a, b)


def test_short_sources_stand_still_at_the_end() -> None:
    recorder = recorded(encoded(scene(6, (0, 0), (3, 0)), **ENCODERS["one reference"]), [0, 2, 4, 5])
    speed_Syx = recorder.slots(np.array([0, 2, 4, 5, 5, 5]), 3)
    assert speed_Syx is not None and speed_Syx[0].max() > 4 and speed_Syx[2].max() == 0


def test_frames_before_the_clip_are_not_kept_and_do_not_matter() -> None:
    data = encoded(scene(18, (0, 0), (2, 0)), **ENCODERS["one reference"] | {"g": "250"})
    recorder = recorded(data, [10, 12, 14, 16])
    assert min(recorder._fields) == 10 and {0, 5} <= recorder._references
    speed_Syx = recorder.slots(np.array([10, 12, 14, 16]), 2)
    assert speed_Syx is not None and speed_Syx.max() == pytest.approx(4, abs=0.5)


def test_motion_is_turned_as_the_picture_is() -> None:
    recorder = recorded(encoded(scene(8, (0, 0), (3, 0)), **ENCODERS["one reference"]), list(range(8)))
    upright = recorder.slots(np.arange(8), 2)
    on_its_side = Orientation(exchanged=True, upside_down=False, mirrored=True)
    recorder._orientation = on_its_side  # as the decoder says of a film that was taken with the camera on its side
    turned = recorder.slots(np.arange(8), 2)
    assert upright is not None and turned is not None
    for before, after in zip(upright, turned):
        assert np.array_equal(np.rot90(before, -1), after)  # `Video` turns an image in the same way


@pytest.mark.parametrize("flip", [False, True])
def test_the_loader_brings_motion_through_the_clips_crop(tmp_path: Path, flip: bool) -> None:
    """Against the square's own pixels through the same crop; streams of keyframes bring zeros."""
    with ShardWriter(tmp_path / "shards", clips_per_shard=8) as writer:
        for k in range(8):
            options = ENCODERS["B-frames that are referred to"] if k else {"g": "1"}
            writer.write(f"c{k}", {"mp4": encoded(scene(12, (0, 0), (4, 0)), **options), "json": {"captions": ["a"]}})
    grid = Grid(2, 8, 8)
    loader = clip_loader(
        [open_corpus(str(tmp_path / "shards"))],
        frames=4,
        stride=2,
        size=64,
        grid=grid,
        seed=3,
        global_batch_size=16,
        micro_batch_size=16,
        rank=0,
        world_size=1,
        workers=0,
        repeated_augmentation=2,
        stop_step=1,
        flip=flip,
        motion=True,
    )
    [(_, [batch])] = list(loader)
    assert batch.motion is not None and batch.motion.shape == (16, 2, 8, 8)
    seen = 0
    for key, motion_SRC, row, start in zip(batch.keys, batch.motion, batch.crops.tolist(), batch.starts.tolist()):
        if key.endswith("c0"):
            assert not motion_SRC.any()
            continue
        crop = Crop(*(int(v) for v in row[:4]), bool(row[4]), SIDE, SIDE)
        first = round(start * 25)
        for slot in range(2):
            inner, outer = np.zeros((1, SIDE, SIDE)), np.zeros((1, SIDE, SIDE))
            for t in (first + 4 * slot, first + 4 * slot + 2):
                # a cell of 8 pixels across the square's edge is between the two; how many are, the drawn crops decide,
                # which depend on the bytes of the files, hence on the encoder's version
                inner[0, 48:80, 24 + 4 * t : 56 + 4 * t] = 1
                outer[0, 32:96, 8 + 4 * t : 72 + 4 * t] = 1
            on_square = crop.resample(inner, 8, 8)[0] > 0.99
            off_square = crop.resample(outer, 8, 8)[0] < 0.01
            if on_square.any():
                seen += 1
                assert motion_SRC[slot][on_square].median() > 6  # 8 pixels from frame to frame
            if off_square.any():
                assert motion_SRC[slot][off_square].median() < 1
    assert seen > 4
