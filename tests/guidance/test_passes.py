"""How many clips go through a tower at once: by arithmetic, and one shape in every pass."""

from __future__ import annotations

import pytest
import torch

from tgm_scale.guidance.maps import TOKENS_PER_PASS, clips_per_pass, in_passes

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("frames", "tokens", "clips"),
    [(16, 50, 16), (8, 50, 32), (16, 197, 4), (16, 257, 4), (16, 577, 2), (16, 729, 1), (64, 729, 1)],
    ids=["B/32", "B/32 one frame a slot", "B/16", "L/14", "L/14 at 336", "so400m at 384", "more than a pass"],
)
def test_a_pass_has_the_most_clips_that_its_tokens_allow(frames: int, tokens: int, clips: int) -> None:
    assert clips_per_pass(GPU, frames * tokens) == clips
    assert clips == 1 or clips * frames * tokens <= TOKENS_PER_PASS < 2 * clips * frames * tokens
    assert clips_per_pass(torch.device("cpu"), frames * tokens) == 1, "to the bit, whatever the batch"


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 9])
def test_every_pass_has_the_same_shape_and_a_clip_the_same_place(batch: int) -> None:
    shapes = []

    def double(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return 2 * x

    x = torch.arange(float(batch * 6)).view(batch, 2, 3)
    assert torch.equal(in_passes(double, 4, x), 2 * x)
    assert shapes == [(4, 2, 3)] * -(-batch // 4)
