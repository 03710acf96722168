"""Normalised targets and their error, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tgm_scale.models.patches import channel_last, patchify
from tgm_scale.objectives.reconstruction import (
    clip_statistics,
    normalised_targets,
    patch_statistics,
    predicted_pixels,
    reconstruction_error,
)


def patches(seed: int = 0, pixels: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 5, 3 * pixels), dtype=torch.uint8, generator=generator)


def test_targets_by_their_definition() -> None:
    x = patches()
    frames = x.numpy().astype(np.float64) / 255
    got = normalised_targets(x)
    assert got.dtype == torch.float32
    for b in range(2):
        for m in range(5):
            columns = []
            for channel in frames[b, m].reshape(3, 32):
                columns.append((channel - channel.mean()) / (channel.std(ddof=1) + 1e-6))
            expected = np.stack(columns, axis=-1).reshape(-1)  # pixels first, channel last
            np.testing.assert_allclose(got[b, m], expected, atol=1e-5)


@pytest.mark.parametrize("pixels", [2 * 16 * 16, 2 * 14 * 14])
@pytest.mark.parametrize("grey", [0, 77, 255])
def test_a_flat_patch_has_the_target_zero(pixels: int, grey: int) -> None:
    assert (normalised_targets(torch.full((1, 1, 3 * pixels), grey, dtype=torch.uint8)) == 0).all()


def test_autocast_changes_no_bit() -> None:
    x, prediction = patches(), torch.randn(2, 5, 96)
    expected = reconstruction_error(prediction, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reconstruction_error(prediction, x), expected)
        assert reconstruction_error(prediction.bfloat16(), x).dtype == torch.float32


def test_error_is_one_mean_a_clip() -> None:
    x, prediction = patches(), torch.randn(2, 5, 96)
    targets = normalised_targets(x).double()
    expected = [((prediction[b].double() - targets[b]) ** 2).mean() for b in range(2)]
    torch.testing.assert_close(reconstruction_error(prediction, x).double(), torch.stack(expected), rtol=1e-5, atol=0)


def test_targets_of_the_clip_by_their_definition() -> None:
    """Mean and deviation of each channel over all pixels of the clip, whichever patches are the targets."""
    video = torch.randint(20, 200, (2, 3, 4, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    chosen = patchify(video, 2, 8)[:, 1:3]
    got = normalised_targets(chosen, clip_statistics(video))
    assert got.dtype == torch.float32
    frames = video.numpy().astype(np.float64)
    for b in range(2):
        for m in range(2):
            by_channel = zip(chosen[b, m].numpy().reshape(3, -1).astype(np.float64), frames[b].reshape(3, -1))
            columns = [(values - whole.mean()) / whole.std(ddof=1) for values, whole in by_channel]
            np.testing.assert_allclose(got[b, m], np.stack(columns, axis=-1).reshape(-1), atol=1e-5)


def test_a_perfect_prediction_gives_the_pixels_back() -> None:
    x = patches()
    own = patch_statistics(x)
    torch.testing.assert_close(predicted_pixels(normalised_targets(x), own), x.float(), rtol=0, atol=1e-3)
    mean = x.float().unflatten(-1, (3, -1)).mean(-1, keepdim=True).expand(-1, -1, -1, 32).flatten(-2)
    torch.testing.assert_close(predicted_pixels(torch.zeros_like(channel_last(x).float()), own), mean)
    video = torch.randint(256, (2, 3, 4, 16, 16), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    x, whole = patchify(video, 2, 8), clip_statistics(video)
    torch.testing.assert_close(predicted_pixels(normalised_targets(x, whole), whole), x.float(), rtol=0, atol=1e-3)
