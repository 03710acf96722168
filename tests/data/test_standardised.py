"""Clips of one brightness and contrast (data.standardise), and segments that are moved (data.time_jitter)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tgm_scale.contracts import STANDARD_DEVIATION, STANDARD_MEAN
from tgm_scale.data.video.decode import segments
from tgm_scale.data.video.transforms import standardised

N = 8


def picture(seed: int = 0) -> torch.Tensor:
    """Noise on a slope, uint8 [4, 32, 32, 3], of mean 120 and deviation 23."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.linspace(80, 160, 32)[None, None, :, None]
    return (slope + 5 * torch.randn(4, 32, 32, 3, generator=generator)).round().clamp(0, 255).to(torch.uint8)


def test_a_clip_has_the_standard_mean_and_deviation() -> None:
    found = standardised(picture())
    assert found.dtype == torch.uint8 and found.shape == (4, 32, 32, 3)
    assert found.double().mean() == pytest.approx(STANDARD_MEAN, abs=0.5)
    assert found.double().std() == pytest.approx(STANDARD_DEVIATION, abs=0.5)


@pytest.mark.parametrize(("gain", "lift"), [(1.0, 40.0), (0.5, 10.0), (1.3, -20.0)])
def test_light_and_contrast_make_no_difference(gain: float, lift: float) -> None:
    filmed = picture()
    otherwise = (filmed.float() * gain + lift).round().clamp(0, 255).to(torch.uint8)
    apart = (standardised(filmed).int() - standardised(otherwise).int()).abs()
    assert (filmed.int() - otherwise.int()).abs().double().mean() > 10
    assert apart.double().mean() < 2 and apart.max() <= 8


@pytest.mark.parametrize("level", [0, 117, 255])
def test_a_clip_of_one_level_stays_one(level: int) -> None:
    assert standardised(torch.full((2, 4, 4, 3), level, dtype=torch.uint8)).eq(STANDARD_MEAN).all()


def test_noise_on_one_level_is_not_made_a_picture() -> None:
    noisy = (117 + torch.randn(4, 32, 32, 3, generator=torch.Generator().manual_seed(0))).round().to(torch.uint8)
    assert standardised(noisy).double().std() < STANDARD_DEVIATION * 0.6


def test_segments_are_moved_and_stretched_within_the_source() -> None:
    middles = [0.5] * N
    assert segments(80, middles, 0.0, 1.0).tolist() == segments(80, middles).tolist() == list(range(5, 80, 10))
    assert segments(80, middles, 0.1, 0.8).tolist() == list(range(12, 76, 8))
    assert segments(80, middles, -0.1, 1.2).tolist() == [0, 10, 22, 34, 46, 58, 70, 79]
    drawn = np.array([segments(3, middles, start, 1.0) for start in np.linspace(-0.9, 0.9, 50)])
    assert drawn.min() == 0 and drawn.max() == 2
