"""Patterns carried along an exact flow."""

from __future__ import annotations

import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.masking.recipes import build_masker
from tgm_scale.masking.saliency import trace

GRID = Grid(8, 14, 14)


def pan(step: tuple[float, float], frames: int = 16, side: int = 28) -> Tensor:
    """Flow [1, T, 2, h, w] toward the base frame of a picture that moves by `step` (x, y, shares) a frame."""
    flow = torch.zeros(1, frames, 2, side, side)
    for t in range(frames):
        flow[0, t] = torch.tensor(step)[:, None, None] * ((t < frames // 2) * 1.0 - (t > frames // 2) * 1.0)
    return flow


def test_a_pan_is_traced_back_exactly() -> None:
    places = torch.stack(trace(pan((0.02, -0.01))))[:, 0]
    home = places[8]
    for t in range(16):
        assert torch.allclose(places[t] - home, torch.tensor([-0.02, 0.01]) * (t - 8), atol=1e-5)


def test_a_turn_is_traced_step_by_step() -> None:
    """A rotation of 3 degrees a frame about the middle: eight steps make 24 degrees."""
    side, frames = 56, 16
    home = trace(torch.zeros(1, frames, 2, side, side))[0][0]

    def turned(x_hw2: Tensor, degrees: float) -> Tensor:
        angle = torch.deg2rad(torch.tensor(degrees))
        matrix = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        return (x_hw2 - 0.5) @ matrix.T + 0.5

    flow = torch.zeros(1, frames, 2, side, side)
    for t in range(frames):
        if t != 8:
            flow[0, t] = (turned(home, -3.0 if t > 8 else 3.0) - home).permute(2, 0, 1)
    places = trace(flow)
    centre = ((home - 0.5).norm(dim=-1) < 0.35)[..., None]
    for t in (0, 15):
        error = (places[t][0] - turned(home, 3.0 * (8 - t))).abs() * centre
        assert error.max() < 0.01


def test_on_the_base_slot_exactly_the_drawn_tokens_are_seen_and_elsewhere_they_follow() -> None:
    """A pan of one token a slot, so half a token within the base slot: all other slots show its shifted copy."""
    seeds = torch.arange(20)
    step = 1 / 14 / 2
    visible = ~build_masker("flow_guided", GRID, 0.9).hidden(seeds, flow=pan((step, 0.0)).expand(20, -1, -1, -1, -1))
    for slot in range(8):
        shift = slot - 4
        rows = slice(None), slice(None), slice(max(shift, 0) + 1, 14 + min(shift, 0) - 1)
        moved = visible[:, 4].roll(shift, dims=2)[rows]
        assert (visible[:, slot][rows] == moved).float().mean() > 0.97
    still = ~build_masker("flow_guided", GRID, 0.9).hidden(seeds, flow=pan((0.0, 0.0)).expand(20, -1, -1, -1, -1))
    assert (still == still[:, :1]).all() and (still.flatten(2).sum(2) == 20).all()


def test_the_drawn_tokens_are_even_over_the_frame() -> None:
    visible = ~build_masker("flow_guided", Grid(2, 6, 6), 0.75).hidden(
        torch.arange(2000), flow=torch.zeros(1, 4, 2, 12, 12).expand(2000, -1, -1, -1, -1)
    )
    share = visible[:, 0].float().mean(0)
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 2000) ** 0.5


def test_what_comes_into_the_frame_is_filled_from_the_base_frame() -> None:
    """Far off, the trace leaves the frame everywhere: the pattern of the base frame stands in."""
    seeds = torch.arange(4)
    masker = build_masker("flow_guided", GRID, 0.9)
    gone = ~masker.hidden(seeds, flow=pan((2.0, 0.0)).expand(4, -1, -1, -1, -1))
    still = ~masker.hidden(seeds, flow=pan((0.0, 0.0)).expand(4, -1, -1, -1, -1))
    assert torch.equal(gone[:, 0], still[:, 0])
