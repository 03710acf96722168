"""The paired bootstrap against what theory says of it."""

from __future__ import annotations

import math

import pytest
import torch

from tgm_scale.evaluation.intervals import group_interval, paired_interval


def test_one_seed_gives_the_width_of_the_normal_interval() -> None:
    gain = torch.randint(-1, 2, (1, 800), generator=torch.Generator().manual_seed(0)).float()
    found = paired_interval(gain)
    half = 1.96 * gain.std().item() / math.sqrt(800)
    assert found.mean == pytest.approx(gain.mean().item())
    assert found.low == pytest.approx(gain.mean().item() - half, abs=0.15 * half)
    assert found.high == pytest.approx(gain.mean().item() + half, abs=0.15 * half)


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    inside = 0
    for _ in range(60):
        gain = (torch.rand(1, 100, generator=generator) < 0.3).float()
        found = paired_interval(gain, draws=200)
        inside += found.low <= 0.3 <= found.high
    assert inside >= 50  # 57 of 60 expected; fewer than 50 has a chance below 0.1 %


def test_seeds_that_disagree_widen_it() -> None:
    agreeing = torch.full((3, 300), 0.1)
    disagreeing = torch.tensor([-0.2, 0.1, 0.4])[:, None].expand(3, 300)
    assert paired_interval(agreeing).low == pytest.approx(0.1)
    found = paired_interval(disagreeing)
    assert found.mean == pytest.approx(0.1)
    assert found.low < -0.1 and found.high > 0.3


def test_no_difference_has_no_width_and_the_seed_fixes_the_digits() -> None:
    assert paired_interval(torch.zeros(3, 50))[:] == (0, 0, 0)
    gain = torch.randn(2, 60, generator=torch.Generator().manual_seed(2))
    assert paired_interval(gain, seed=1) == paired_interval(gain, seed=1)
    assert paired_interval(gain, seed=1) != paired_interval(gain, seed=2)


def test_an_interval_over_groups_has_whole_groups() -> None:
    """Two groups, one all right and one all wrong, of 30 and 10 clips: a draw has 0, 0.75 or 1."""
    right = torch.tensor([True] * 30 + [False] * 10)
    found = group_interval(right, ["b"] * 30 + ["a"] * 10)
    assert found == (0.75, 0.0, 1.0)
    apart = group_interval(right, [str(number) for number in range(40)])
    assert apart.mean == 0.75 and 0.55 < apart.low < 0.68 and 0.82 < apart.high < 0.92, (
        "each clip a group: as over clips"
    )


@pytest.mark.parametrize(("groups", "covers"), [(4, (0.70, 0.88)), (20, (0.88, 0.98))])
def test_an_interval_over_few_groups_is_too_narrow(groups: int, covers: tuple[float, float]) -> None:
    """FEW_GROUPS and docs/EVALUATION.md rest on it: 40 clips a group, whose accuracies are 0.7 with a deviation of
    0.1."""
    generator, hits, tries = torch.Generator().manual_seed(0), 0, 200
    names = [str(group) for group in range(groups) for _ in range(40)]
    for _ in range(tries):
        share_G = (0.7 + 0.1 * torch.randn(groups, generator=generator)).clamp(0, 1)
        right_M = torch.rand(groups, 40, generator=generator) < share_G[:, None]
        found = group_interval(right_M.flatten(), names, draws=500)
        hits += found.low <= 0.7 <= found.high
    assert covers[0] < hits / tries < covers[1]
