"""The guidance alarm: figures against hand counts, and when it speaks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.masking.diagnostics import (
    GuidanceMonitor,
    MotionMonitor,
    centre_box,
    of_another_clip,
    overlap,
    slot_repeat,
)
from tgm_scale.masking.recipes import build_masker

GRID = Grid(4, 6, 6)


def maps(count: int, seed: int) -> Tensor:
    return torch.rand(count, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


def monitor(
    relevance: Tensor,
    swapped: Tensor | None,
    ids: Tensor | None = None,
    weight: Tensor | None = None,
    clips: Tensor | None = None,
):
    count = len(relevance)
    weight, own = torch.ones(count) if weight is None else weight, torch.arange(count)
    watch = GuidanceMonitor(build_masker("text_guided", GRID, 0.5))
    watch.observe(
        own,
        weight,
        of_another_clip(own if ids is None else ids, own if clips is None else clips, weight, 1),
        relevance,
        swapped,
        motion=None,
    )
    return watch


def test_overlap_and_repeat_by_hand() -> None:
    first = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool().view(1, 2, 2, 2)
    other = torch.tensor([[1, 0, 1, 0], [1, 0, 1, 0]]).bool().view(1, 2, 2, 2)
    assert overlap(first, other).tolist() == [0.75]
    assert slot_repeat(first).tolist() == [0.5]
    assert slot_repeat(other).tolist() == [1.0]
    assert slot_repeat(first[:, :1]).tolist() == [1.0]


def test_the_centre_box_has_the_masks_count_and_its_place() -> None:
    box = centre_box(build_masker("text_guided", GRID, 16 / 36))
    assert box.sum() == 64 and box[:, :, 1:5, 1:5].all()
    odd = centre_box(build_masker("text_guided", GRID, 20 / 36))
    assert (odd.flatten(2).sum(2) == 20).all() and odd[:, :, 1:5, 1:5].all()


@pytest.mark.parametrize("recipe", ["random", "tube", "text_guided"])
def test_a_box_in_every_scope(recipe: str) -> None:
    masker = build_masker(recipe, GRID, 0.5)
    assert centre_box(masker).sum() == masker.hidden_count


def test_figures_against_masks_made_apart() -> None:
    relevance, swapped = maps(5, 0), maps(5, 1)
    masker = build_masker("text_guided", GRID, 0.5)
    mine, other = (masker.hidden(torch.arange(5), relevance=m).float().flatten(1) for m in (relevance, swapped))
    figures = monitor(relevance, swapped).metrics()
    assert figures["mask_swapped_overlap"] == pytest.approx(float((mine * other).sum() / mine.sum()))
    assert set(figures) == {"mask_swapped_overlap", "mask_centre_overlap", "mask_slot_repeat"}


def test_equal_captions_and_broken_clips_are_not_counted() -> None:
    relevance = maps(4, 0)
    swapped = maps(4, 1)
    swapped[1] = relevance[1]  # equal captions: the same mask, and no sign of anything
    apart = monitor(relevance, swapped, ids=torch.tensor([0, 0, 1, 2]), weight=torch.tensor([1.0, 1, 1, 0]))
    masker = build_masker("text_guided", GRID, 0.5)
    mine, other = (masker.hidden(torch.arange(4), relevance=m) for m in (relevance, swapped))
    # row 0 is compared with the caption of the broken row 3, rows 1 and 3 as above: row 2 is left
    assert apart.metrics()["mask_swapped_overlap"] == pytest.approx(float(overlap(mine, other)[2]))


def test_another_caption_of_the_same_clip_is_not_another_clips() -> None:
    """Repeats of a sample stand side by side, and each may have drawn another of its captions."""
    ids, clips = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([7, 7, 7, 8, 8, 8])
    assert of_another_clip(ids, clips, torch.ones(6), 1).tolist() == [True, False, False, True, False, False]
    assert of_another_clip(ids, clips, torch.ones(6), 3).all(), "rolled by whole samples all count"
    assert not of_another_clip(ids[:3], clips[:3], torch.ones(3), 3).any()
    assert not of_another_clip(torch.zeros(6), clips, torch.ones(6), 3).any(), "captions are equal"
    assert "mask_swapped_overlap" not in monitor(maps(3, 0), maps(3, 0), clips=torch.zeros(3)).metrics()


def test_few_pairs_of_captions_alarm_nobody() -> None:
    """The other metrics are of all clips, this one of those beside another clip."""
    deaf = maps(80, 0)
    for others, alarmed in ((63, False), (64, True)):
        clips = torch.cat([torch.arange(others), torch.full((80 - others,), others - 1)])
        watch = monitor(deaf, deaf.clone(), clips=clips)
        watch.metrics()
        assert (watch.warning() is not None) == alarmed


def test_without_another_caption_there_is_no_figure_of_it() -> None:
    assert "mask_swapped_overlap" not in monitor(maps(1, 0), maps(1, 0), ids=torch.tensor([7])).metrics()
    assert set(monitor(maps(3, 0), None).metrics()) == {"mask_centre_overlap", "mask_slot_repeat"}


def test_figures_are_of_the_clips_since_the_last_call() -> None:
    watch = monitor(maps(8, 0), maps(8, 1))
    first = watch.metrics()
    assert watch.metrics() == {}
    watch.observe(torch.arange(8), torch.ones(8), torch.ones(8).bool(), maps(8, 2), maps(8, 2))
    assert watch.metrics()["mask_swapped_overlap"] == 1.0 > first["mask_swapped_overlap"]


def test_captions_without_a_say_are_called_out() -> None:
    deaf = maps(80, 0)
    watch = monitor(deaf, deaf.clone())
    assert watch.warning() is None  # nothing read yet
    watch.metrics()
    warning = watch.warning()
    assert warning is not None and "captions hardly change the masks" in warning and "100%" in warning


def test_masks_that_are_a_centre_box_are_called_out() -> None:
    nearness = centre_box(build_masker("text_guided", GRID, 0.5)).float().expand(80, -1, -1, -1)
    watch = monitor(nearness, maps(80, 1))
    watch.metrics()
    assert "box in the centre" in str(watch.warning())


def test_guidance_that_works_and_few_clips_raise_no_alarm() -> None:
    working = monitor(maps(80, 0), maps(80, 1))
    working.metrics()
    assert working.warning() is None
    few = monitor(maps(10, 0), maps(10, 0))
    few.metrics()
    assert few.warning() is None


def test_clips_without_motion_are_counted_and_called_out() -> None:
    moving = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    moving[1] = 0
    watch = MotionMonitor()
    watch.observe(moving, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert watch.metrics() == {"mask_without_motion": pytest.approx(1 / 3)} and watch.metrics() == {}
    assert watch.warning() is None  # few clips
    watch.observe(torch.zeros(97, 2, 3, 3), torch.ones(97))
    watch.metrics()
    warning = watch.warning()
    assert warning is not None and "98 of 100 clips bring no motion" in warning and "shards make" in warning
    lively = MotionMonitor()
    lively.observe(torch.ones(100, 2, 3, 3), torch.ones(100))
    lively.metrics()
    assert lively.warning() is None
