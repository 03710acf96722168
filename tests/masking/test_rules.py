"""Rules with a geometry of their own, each against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.masking.recipes import build_masker
from tgm_scale.masking.rules import running_cell

CLIP = Grid(8, 14, 14)


def seeds(count: int) -> Tensor:
    return torch.arange(count) * 7919 + 11


def blob(grid: Grid, places: list[tuple[int, int]]) -> Tensor:
    """Motion [1, S, R, C]: a 2 x 2 square at a (row, column) for each slot."""
    motion = torch.zeros(1, grid.slots, grid.rows, grid.columns)
    for slot, (row, column) in enumerate(places):
        motion[0, slot, row : row + 2, column : column + 2] = 5.0
    return motion


@pytest.mark.parametrize("mask_ratio", [0.25, 0.5, 0.75])
def test_the_box_hides_what_moves_wherever_it_goes(mask_ratio: float) -> None:
    places = [(s, 12 - s) for s in range(8)]
    motion = blob(CLIP, places).expand(32, -1, -1, -1)
    hidden = build_masker("motion_guided", CLIP, mask_ratio).hidden(seeds(32), motion=motion)
    assert hidden[motion > 0].all()


def test_the_box_is_a_box_of_the_wanted_area() -> None:
    """Where the count is a box's, the mask is that box: nothing inside is seen, nothing outside hidden."""
    motion = blob(CLIP, [(6, 6)] * 8).expand(200, -1, -1, -1)
    masker = build_masker("motion_guided", CLIP, 0.5)
    hidden = masker.hidden(seeds(200), motion=motion)[:, 0]
    rows = hidden.any(2).sum(1) * hidden.any(1).sum(1)  # the bounding box
    assert (hidden.flatten(1).sum(1) == 98).all()
    assert rows.float().mean() < 125  # a scattered mask's would be all 196 tokens
    aspects = hidden.any(1).sum(1) / hidden.any(2).sum(1)
    assert aspects.min() < 0.9 and aspects.max() > 1.1


def test_the_box_moves_smoothly_over_a_jump_and_through_slots_without_motion() -> None:
    def columns(places: list[tuple[int, int]], blind: list[int]) -> Tensor:
        motion = blob(CLIP, places)
        motion[:, blind] = 0
        hidden = build_masker("motion_guided", CLIP, 0.2).hidden(seeds(1), motion=motion)[0].float()
        return (hidden * (torch.arange(14) + 0.5)).sum((1, 2)) / hidden.sum((1, 2))

    still = columns([(6, 9)] * 8, blind=[2, 3, 7])
    assert (still - still[0]).abs().max() < 1.0
    jump = columns([(6, 1)] * 4 + [(6, 11)] * 4, blind=[])
    assert jump[0] < 5 and jump[-1] > 9
    assert (jump.diff() > -0.5).all() and jump.diff().max() < 6  # a jump of 10 tokens


def test_without_motion_the_box_lies_at_random_and_stays() -> None:
    motion = torch.zeros(400, 8, 14, 14)
    hidden = build_masker("motion_guided", CLIP, 0.25).hidden(seeds(400), motion=motion).float()
    centres = (hidden * (torch.arange(14) + 0.5)).sum((2, 3)) / hidden.sum((2, 3))
    assert (centres - centres[:, :1]).abs().max() < 1.0
    assert centres[:, 0].std() > 1.5


def parts(grid: Grid) -> Tensor:
    """Labels [1, S, R, C]: five parts of different sizes."""
    label = torch.zeros(1, grid.slots, grid.rows, grid.columns)
    label[..., :4, :] = 1
    label[..., 4:8, :5] = 2
    label[..., 10:, 7:] = 3
    label[..., 6:9, 8:11] = 4
    return label


def shares(hidden: Tensor, label: Tensor) -> Tensor:
    """Share of each part that is hidden: [B, S, 5]."""
    return torch.stack(
        [((label == p) & hidden).sum((2, 3)) / (label == p).sum((2, 3)).clamp(min=1) for p in range(5)], -1
    )


def test_every_part_gives_the_same_share() -> None:
    label = parts(CLIP).expand(16, -1, -1, -1)
    hidden = build_masker("part_based", CLIP, 0.75).hidden(seeds(16), parts=label)
    sizes = torch.stack([(label[0, 0] == p).sum() for p in range(5)])
    assert (shares(hidden, label) * sizes - 0.75 * sizes).abs().max() < 1.0001  # to one token
    assert not torch.equal(hidden[0], hidden[1])


def test_whole_parts_are_hidden_but_for_one() -> None:
    label = parts(CLIP).expand(16, -1, -1, -1)
    share = shares(build_masker("part_based", CLIP, 0.6, whole_parts=1.0).hidden(seeds(16), parts=label), label)
    assert ((share > 0) & (share < 1)).sum(-1).max() <= 1
    assert len({tuple(row) for row in (share == 1).flatten(0, 1).tolist()}) > 3  # in random order


def test_between_the_two_the_counts_are_blended() -> None:
    label = parts(CLIP).expand(8, -1, -1, -1)
    sizes = torch.stack([(label[0, 0] == p).sum() for p in range(5)])
    counts = [
        shares(build_masker("part_based", CLIP, 0.6, whole_parts=w).hidden(seeds(8), parts=label), label) * sizes
        for w in (0.0, 0.25, 1.0)
    ]
    assert (counts[1] - (0.75 * counts[0] + 0.25 * counts[2])).abs().max() < 2


@pytest.mark.parametrize(("given", "progress", "constant"), [
    ((0.0, 1.0), 0.0, 0.0), ((0.0, 1.0), 0.5, 0.25), ((0.0, 1.0), 1.0, 1.0),
    ([0.9, 0.1], 0.5, 0.7), ([0.2, 0.2], 0.3, 0.2), (0.4, 0.9, 0.4),
])  # fmt: skip
def test_the_curriculum_goes_with_the_square_of_the_progress(given: object, progress: float, constant: float) -> None:
    label = parts(CLIP).expand(8, -1, -1, -1)
    moving = build_masker("part_based", CLIP, 0.6, whole_parts=given).hidden(seeds(8), progress, parts=label)
    fixed = build_masker("part_based", CLIP, 0.6, whole_parts=constant).hidden(seeds(8), parts=label)
    assert torch.equal(moving, fixed)


def test_the_paper_s_curriculum_is_the_recipe_s_own() -> None:
    label = parts(CLIP).expand(8, -1, -1, -1)
    masker = build_masker("part_based", CLIP, 0.6)
    for progress, constant in ((0.0, 0.0), (0.7, 0.49), (1.0, 1.0)):
        fixed = build_masker("part_based", CLIP, 0.6, whole_parts=constant)
        assert torch.equal(masker.hidden(seeds(8), progress, parts=label), fixed.hidden(seeds(8), parts=label))
    assert masker.summary().endswith("; whole parts 0 at the start, 1 at the end")


def test_bands_of_ranks_can_be_the_parts() -> None:
    relevance = torch.rand(4, 8, 14, 14, generator=torch.Generator().manual_seed(0))
    hidden = build_masker("text_guided", CLIP, 0.5, rule="stratified").hidden(seeds(4), relevance=relevance)
    ordered = hidden.flatten(2).gather(2, relevance.flatten(2).argsort(-1)).unflatten(2, (7, 28)).float()
    assert (ordered.mean(-1) - 0.5).abs().max() < 0.08  # 28 tokens a band, to a token or two


def test_running_cells_keep_half_of_each_cell_and_move_on() -> None:
    grid = Grid(8, 6, 10)
    kept = running_cell(seeds(64), grid).view(64, 8, 3, 2, 5, 2).transpose(3, 4)
    assert (kept.flatten(4).sum(-1) == 2).all()  # of each 2 x 2 cell, in every slot
    assert torch.equal(kept[:, :4], kept[:, 4:])
    assert (kept[:, :4].sum(1) == 2).all()  # within four slots each place is kept twice
    assert (kept[:, 1:] ^ kept[:, :-1]).any((2, 3, 4, 5)).all()
    assert len({tuple(row) for row in kept[:, 0].flatten(1).tolist()}) == 4  # random start


@pytest.mark.parametrize(("mask_ratio", "decode_ratio"), [(0.9, 0.5), (0.6, 0.5), (0.75, 0.3), (0.5, 0.9)])
def test_targets_come_from_the_running_cells_first(mask_ratio: float, decode_ratio: float) -> None:
    masker = build_masker("tube", CLIP, mask_ratio, decode_ratio=decode_ratio, targets="running_cell")
    mask = masker(seeds(8))
    hidden = masker.hidden(seeds(8)).flatten(1)
    cells = running_cell(seeds(8), CLIP)
    assert mask.target.shape[1] == masker.target_count == int(decode_ratio * masker.hidden_count)
    assert hidden.gather(1, mask.target).all()
    available = (hidden & cells).sum(1)
    in_cells = cells.gather(1, mask.target).sum(1)
    assert torch.equal(in_cells, available.clamp(max=masker.target_count))
    plain = build_masker("tube", CLIP, mask_ratio, decode_ratio=decode_ratio)
    assert torch.equal(mask.visible, plain(seeds(8)).visible)
