"""Crops: where they lie, and that pixels and maps go through the same one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tgm_scale.data.video import transforms
from tgm_scale.data.video.transforms import CROPS, MULTI_SCALES, Crop, axis_weights, draw_crop

sides = st.integers(1, 700)
seeds = st.integers(0, 2**63 - 1)


@given(st.sampled_from(sorted(CROPS)), sides, sides, seeds, st.booleans())
def test_a_crop_lies_in_its_frame(kind: str, height: int, width: int, seed: int, flip: bool) -> None:
    crop = draw_crop(kind, height, width, seed, flip)
    assert crop.height >= 1 and crop.width >= 1 and crop.top >= 0 and crop.left >= 0
    assert crop.top + crop.height <= height and crop.left + crop.width <= width
    assert crop == draw_crop(kind, height, width, seed, flip)
    assert flip or not crop.flip


def test_multi_scale_draws_every_pair_of_neighbouring_scales_at_every_place() -> None:
    height, width = 256, 340
    boxes = [transforms.multi_scale_crop(height, width, seed) for seed in range(4000)]
    lengths = [int(256 * scale) for scale in MULTI_SCALES]
    pairs = {(lengths.index(box[2]), lengths.index(box[3])) for box in boxes}
    assert pairs == {(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    # On a 4 x 4 division of the room that is left: corners, edge middles and centre, and the middles of the quarters.
    lattice = {(a, b) for a in (0, 2, 4) for b in (0, 2, 4)} | {(a, b) for a in (1, 3) for b in (1, 3)}
    for top, left, box_height, box_width in boxes:
        rows, columns = height - box_height, width - box_width
        assert any((rows * a // 4, columns * b // 4) == (top, left) for a, b in lattice)
    smallest = {box[:2] for box in boxes if box[2:] == (lengths[3], lengths[3])}
    assert len(smallest) == 13


@given(seeds)
def test_random_resized_crop_keeps_its_ranges(seed: int) -> None:
    _, _, height, width = transforms.random_resized_crop(240, 320, seed)
    assert 0.49 < height * width / (240 * 320) <= 1
    assert 3 / 4 * 0.98 < width / height < 4 / 3 * 1.02


def test_random_resized_crop_of_a_strip_is_its_largest_box_of_an_allowed_aspect() -> None:
    assert transforms.random_resized_crop(100, 2000, 0) == (0, (2000 - 133) // 2, 100, 133)
    assert transforms.random_resized_crop(2000, 90, 0) == ((2000 - 120) // 2, 0, 120, 90)


def test_center_crop_is_the_largest_square() -> None:
    assert transforms.center_crop(256, 341, 0) == (0, 42, 256, 256)


def test_half_of_the_crops_are_mirrored_when_asked() -> None:
    flipped = sum(draw_crop("center", 8, 8, seed, True).flip for seed in range(1000))
    assert 430 < flipped < 570


def smooth_frames(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [[127 + 120 * np.sin(x / 45 + y / 60 + c + t / 9) for c in range(3)] for t in range(3)]
    return np.moveaxis(np.array(waves), 1, -1).astype(np.uint8)


@pytest.mark.parametrize("kind", sorted(CROPS))
@pytest.mark.parametrize("size", [32, 112, 300])
def test_resizing_agrees_with_pillow(kind: str, size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 121, 187, 3)).astype(np.uint8)
    crop = draw_crop(kind, 121, 187, 3, flip=False)
    cut = np.stack([crop.cut(frame) for frame in noise])
    ours = crop.resize(cut, size).numpy()
    assert ours.shape == (2, size, size, 3) and ours.dtype == np.uint8
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    for image, frame in zip(ours, noise):
        theirs = Image.fromarray(frame).crop(box).resize((size, size), Image.Resampling.BILINEAR)
        assert np.abs(image.astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_a_map_on_the_whole_frame_and_the_same_grid_stays_as_it_is() -> None:
    values = np.random.default_rng(0).random((4, 7, 9)).astype(np.float32)
    whole = Crop(0, 0, 90, 126, False, 90, 126)
    assert torch.equal(whole.resample(values, 7, 9), torch.from_numpy(values))
    mirrored = Crop(0, 0, 90, 126, True, 90, 126)
    assert torch.equal(mirrored.resample(values, 7, 9), torch.from_numpy(values[..., ::-1].copy()))


@given(st.sampled_from(sorted(CROPS)), seeds, st.booleans())
def test_maps_and_pixels_go_through_the_same_crop(kind: str, seed: int, flip: bool) -> None:
    """A map of one value a pixel, read on the token grid, is the mean of each token's pixels in the cropped clip."""
    height, width, size, rows = 120, 176, 64, 8
    frames = smooth_frames(height, width)
    crop = draw_crop(kind, height, width, seed, flip)
    clip = crop.resize(np.stack([crop.cut(frame) for frame in frames]), size).float()
    tokens = clip[..., 0].reshape(3, rows, size // rows, rows, size // rows).mean((2, 4))
    read = crop.resample(frames[..., 0], rows, rows)
    # The triangle reaches over the token's edge, and at the frame's border pixels see what the crop has cut away.
    assert (read - tokens).abs().max() < 8 and (read - tokens).abs().mean() < 2


@given(st.sampled_from(sorted(CROPS)), seeds, st.booleans(), st.integers(1, 40), st.integers(1, 40))
def test_maps_are_read_as_pillow_resizes_a_box(kind: str, seed: int, flip: bool, down: int, across: int) -> None:
    crop = draw_crop(kind, 96, 160, seed, flip)
    values = np.random.default_rng(seed).random((2, down, across)).astype(np.float32)
    box = np.array([crop.left, crop.top, crop.left + crop.width, crop.top + crop.height])
    cells = box / [160, 96, 160, 96] * [across, down, across, down]
    for ours, image in zip(crop.resample(values, 6, 5).numpy(), values):
        theirs = Image.fromarray(image).resize((5, 6), Image.Resampling.BILINEAR, box=tuple(cells))
        assert np.allclose(ours[:, ::-1] if crop.flip else ours, np.asarray(theirs), atol=1e-5)


@given(st.floats(0, 0.9), st.floats(0.01, 1), st.integers(1, 30), st.integers(1, 30))
def test_axis_weights_are_means(start: float, length: float, count: int, cells: int) -> None:
    weights = axis_weights(start, min(length, 1 - start), count, cells)
    assert weights.shape == (count, cells) and (weights >= 0).all()
    assert np.allclose(weights.sum(axis=1), 1)
