"""Every recipe against the mask's contract, and each selection against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.masking import saliency
from tgm_scale.masking.recipes import RECIPES, Masker, build_masker
from tgm_scale.masking.saliency import SOURCES, SaliencyInputs

LEARNED = ("adamae", "automae")
CLIP = Grid(8, 14, 14)  # 16 frames of 224 pixels, tubelets of 2 x 16 x 16


def seeds(count: int, first: int = 0) -> Tensor:
    return torch.arange(first, first + count) * 7919 + 11


def maps(grid: Grid, count: int, levels: int | None = None, seed: int = 0) -> Tensor:
    """Scores [B, S, R, C]; with `levels`, many equal ones."""
    x = torch.rand(count, grid.slots, grid.rows, grid.columns, generator=torch.Generator().manual_seed(seed))
    return x if levels is None else (x * levels).floor()


def aux(masker: Masker, relevance: Tensor) -> dict[str, Tensor]:
    """What the masker needs: the given map under every name, and a flow made of it."""
    given = dict.fromkeys(masker.needs, relevance)
    if "flow" in given:
        frames = relevance.repeat_interleave(2, dim=1)
        given["flow"] = torch.stack([frames, -frames], dim=2) / (10 * frames.amax().clamp(min=1))
    return given


def dense(index: Tensor, grid: Grid) -> Tensor:
    """Indices [B, K] as bool [B, S, per slot]."""
    return (
        torch.zeros(len(index), grid.tokens, dtype=torch.bool)
        .scatter_(1, index, True)
        .view(-1, grid.slots, grid.per_slot)
    )


grids = st.builds(Grid, st.integers(1, 6), st.integers(2, 9), st.integers(2, 9))
shares = st.floats(0.05, 0.95)


@settings(max_examples=150, deadline=None)
@given(
    recipe=st.sampled_from(sorted(RECIPES)),
    grid=grids,
    mask_ratio=shares,
    thinning=st.none() | shares,
    decode_ratio=st.floats(0.05, 1.0),
    options=st.fixed_dictionaries(
        {},
        optional={
            "scope": st.sampled_from(["clip", "slot", "tube"]),
            "rule": st.sampled_from(["top_k", "bottom_k", "moving_box", "stratified"]),
            "whole_parts": st.sampled_from([0.0, 0.3, 1.0, (0.0, 1.0)]),
            "targets": st.sampled_from(["random", "running_cell"]),
            "temperature": st.sampled_from([0.0, 0.1]),
            "scale": st.sampled_from(["rank", "raw"]),
            "sources": st.sampled_from(
                [{"text": 0.7, "random": 0.3}, {"motion": 1}, {"frame": 2, "block": 1.0}, {"flow": 1}]
            ),
        },
    ),
    levels=st.sampled_from([1, 2, 5, None]),
)
def test_any_mask_keeps_the_contract(
    recipe: str,
    grid: Grid,
    mask_ratio: float,
    thinning: float | None,
    decode_ratio: float,
    options: dict[str, Any],
    levels: int | None,
) -> None:
    visible_ratio = None if thinning is None else thinning * (1 - mask_ratio)
    try:
        masker = build_masker(recipe, grid, mask_ratio, visible_ratio, decode_ratio, **options)
    except ValueError as error:
        unfit = {"adamae": "learn", "automae": "learn", "part_based": "parts"}.get(
            recipe, "scale=raw reads the numbers of parts"
        )
        known = (unfit, "scale=raw reads the numbers of parts", "raise it to at least")  # or a share too small
        assert any(words in str(error) for words in known)
        return
    relevance = maps(grid, 3, levels)
    mask = masker(seeds(3), **aux(masker, relevance))
    hidden = masker.hidden(seeds(3), **aux(masker, relevance)).flatten(2)

    size = grid.tokens if masker.recipe.scope == "clip" else grid.per_slot
    in_group = int(mask_ratio * size + 1e-6)
    assert masker.hidden_count == in_group * (grid.tokens // size)
    assert mask.visible.shape == (3, masker.visible_count) and mask.visible.dtype == torch.int64
    assert mask.target.shape == (3, masker.target_count) and mask.target.dtype == torch.int64
    assert masker.target_count == int(decode_ratio * masker.hidden_count + 1e-6)
    assert masker.visible_count <= grid.tokens - masker.hidden_count
    if visible_ratio is None:
        assert masker.visible_count == grid.tokens - masker.hidden_count
    for index in (mask.visible, mask.target):
        assert (index.diff(dim=1) > 0).all()  # ascending, none twice
        assert index.min() >= 0 and index.max() < grid.tokens
    assert not (dense(mask.visible, grid) & hidden).any()
    assert (dense(mask.target, grid) <= hidden).all()
    assert (hidden.flatten(1).sum(1) == masker.hidden_count).all()
    if masker.recipe.scope != "clip":
        assert (hidden.sum(2) == in_group).all()
    if masker.recipe.scope == "tube":
        assert (hidden == hidden[:, :1]).all()


@settings(max_examples=50, deadline=None)
@given(
    recipe=st.sampled_from(sorted(RECIPES)),
    levels=st.sampled_from([1, 3, None]),
    temperature=st.sampled_from([0.0, 0.2]),
    order=st.permutations(range(5)),
    size=st.integers(1, 5),
)
def test_a_sample_has_one_mask_in_any_batch(
    recipe: str, levels: int | None, temperature: float, order: list[int], size: int
) -> None:
    grid = Grid(4, 5, 6)
    temperature = temperature or 0.2 * (recipe in LEARNED)  # which draws, whatever it is
    temperature *= recipe != "part_based"  # whose source has no order to disturb
    masker = build_masker(recipe, grid, 0.6, visible_ratio=0.2, decode_ratio=0.5, temperature=temperature)
    relevance, chosen = maps(grid, 5, levels), order[:size]
    whole = masker(seeds(5), **aux(masker, relevance))
    part = masker(seeds(5)[chosen], **aux(masker, relevance[chosen]))
    assert torch.equal(part.visible, whole.visible[chosen])
    assert torch.equal(part.target, whole.target[chosen])


@pytest.mark.parametrize(
    ("recipe", "mask_ratio", "visible", "target"),
    [
        ("text_guided", 0.6, 632, 936),  # 117 of each slot of 196
        ("tube", 0.9, 160, 1408),  # VideoMAE leaves 20 of 196
        ("random", 0.9, 157, 1411),
        ("frame", 0.875, 196, 1372),  # 7 of 8 slots
        ("block", 0.75, 392, 1176),
    ],
)
def test_counts_of_the_published_settings(recipe: str, mask_ratio: float, visible: int, target: int) -> None:
    masker = build_masker(recipe, CLIP, mask_ratio)
    assert (masker.visible_count, masker.target_count) == (visible, target)
    assert f"{visible} visible" in masker.summary()


def test_a_binary_fraction_does_not_lose_a_token() -> None:
    assert int(0.29 * 100) == 28
    assert build_masker("random", Grid(1, 10, 10), 0.29).hidden_count == 29


def test_the_complement_of_the_mask_ratio_thins_nothing() -> None:
    masker = build_masker("text_guided", CLIP, 0.6, visible_ratio=0.4)
    assert masker.visible_count == 632  # and not floor(0.4 x 1568) = 627


@pytest.mark.parametrize("scope", ["slot", "clip", "tube"])
@pytest.mark.parametrize(("rule", "sign"), [("top_k", 1), ("bottom_k", -1)])
def test_the_k_highest_or_lowest_are_hidden(scope: str, rule: str, sign: int) -> None:
    relevance = maps(CLIP, 4)
    masker = build_masker("text_guided", CLIP, 0.6, scope=scope, rule=rule)
    hidden = masker.hidden(seeds(4), relevance=relevance).numpy()
    for clip, scores in zip(hidden, sign * relevance.numpy()):
        groups = {
            "slot": [(clip[s], scores[s]) for s in range(8)],
            "clip": [(clip, scores)],
            "tube": [(clip[s], scores.mean(axis=0)) for s in range(8)],
        }[scope]
        for chosen, score in groups:
            highest = np.sort(score.ravel())[::-1][: masker.hidden_per_group]
            assert sorted(score[chosen], reverse=True) == highest.tolist()


@pytest.mark.parametrize("recipe", ["random", "tube", "text_guided"])
def test_equal_scores_are_hidden_at_random_and_evenly(recipe: str) -> None:
    grid, count = Grid(2, 4, 4), 4000
    masker = build_masker(recipe, grid, 0.5, visible_ratio=0.25, decode_ratio=0.5)
    relevance = torch.zeros(count, 2, 4, 4)
    hidden = masker.hidden(seeds(count), **aux(masker, relevance)).float()
    mask = masker(seeds(count), **aux(masker, relevance))
    five_sigma = 5 * 0.5 / count**0.5
    assert (hidden.mean(0) - 0.5).abs().max() < five_sigma
    for index in (mask.visible, mask.target):  # drawn evenly from what is and what is not hidden
        assert (dense(index, grid).float().mean(0) - 0.25).abs().max() < five_sigma
    tokens = hidden.flatten(1)
    correlation = torch.corrcoef(tokens.T)
    tube = torch.eye(16).repeat(2, 2).bool() if recipe == "tube" else torch.eye(32).bool()
    assert correlation[tube].min() > 0.999
    assert correlation[~tube].abs().max() < 5 / count**0.5 + 1 / 15  # -1 / (n - 1) by the fixed count


def test_ties_fall_to_noise_and_not_to_the_first_in_memory() -> None:
    grid = Grid(1, 1, 8)
    relevance = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]).view(1, 1, 1, 8).expand(2000, -1, -1, -1)
    hidden = build_masker("text_guided", grid, 0.25).hidden(seeds(2000), relevance=relevance).view(2000, 8).float()
    assert hidden[:, 4:].sum() == 0
    assert (hidden[:, :4].mean(0) - 0.5).abs().max() < 0.06


@pytest.mark.parametrize(("scope", "groups"), [("clip", 1), ("slot", 2), ("tube", 2)])
def test_a_learned_mask_draws_by_the_probability_that_it_is_taught_by(scope: str, groups: int) -> None:
    """One token of each group is seen: its share is exp of `log_probability`, which has the logits' gradient."""
    grid, count, temperature = Grid(2, 2, 2), 20_000, 0.5
    logits = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    masker = build_masker("adamae", grid, 7 / 8 if scope == "clip" else 3 / 4, scope=scope, temperature=temperature)
    log_probability = masker.log_probability(seeds(1), sampler=logits)
    seen = ~masker.hidden(seeds(count), sampler=logits.detach().expand(count, -1, -1, -1)).flatten(1)
    torch.testing.assert_close(
        seen.float().mean(0), log_probability[0].exp(), rtol=0, atol=5 * 0.5 / count**0.5, check_dtype=False
    )
    x = logits.flatten(1) / temperature
    if scope == "tube":
        x = (x[:, :4] + x[:, 4:]).repeat(1, 2) / 2
    plain = x.view(1 if scope == "clip" else 2, -1)
    wanted = (plain - plain.exp().sum(1, keepdim=True).log()).flatten()
    torch.testing.assert_close(log_probability[0], wanted)
    weight = torch.arange(8.0)
    own, by_hand = (torch.autograd.grad((value * weight).sum(), logits)[0] for value in (log_probability[0], wanted))
    torch.testing.assert_close(own, by_hand)
    assert log_probability.exp().sum().item() == pytest.approx(groups)


def test_a_relaxed_mask_is_taught_through_the_noise_by_which_it_was_drawn() -> None:
    """The most probable tokens, given the noise, are those that are hidden; the gradient is that of the softmax."""
    grid = Grid(2, 3, 3)
    logits = torch.randn(50, 2, 3, 3, generator=torch.Generator().manual_seed(4), requires_grad=True)
    masker = build_masker("automae", grid, 0.5, temperature=0.7)
    given = {"generator": logits, "heads": torch.ones(50, 4, 2, 3, 3)}
    log_BGn = masker.log_probability(seeds(50), **given).view(50, 2, 9)
    chosen = masker.hidden(seeds(50), **given).view(50, 2, 9)
    assert (log_BGn.masked_fill(~chosen, 1.0).amin(2) > log_BGn.masked_fill(chosen, -99.0).amax(2)).all()
    torch.testing.assert_close(log_BGn.exp().sum(2), torch.ones(50, 2))
    [gradient] = torch.autograd.grad(log_BGn[0, 0, 0], logits)
    wanted = ((torch.arange(9) == 0).float() - log_BGn[0, 0].exp()) / 0.7
    torch.testing.assert_close(gradient[0, 0].flatten(), wanted)
    assert gradient[0, 1].abs().max() == 0 and gradient[1:].abs().max() == 0, "of another slot, of other clips"


@pytest.mark.parametrize(("rule", "counted_hidden"), [("top_k", True), ("bottom_k", False)])
def test_a_temperature_draws_in_proportion_to_its_softmax(rule: str, counted_hidden: bool) -> None:
    """One token of four hidden (top k) or left visible (bottom k): its probability is softmax(score / temperature)."""
    count, temperature = 20_000, 0.7
    scores = torch.tensor([0.1, -0.9, 0.6, 0.2])
    masker = build_masker(
        "text_guided",
        Grid(1, 2, 2),
        0.25 if counted_hidden else 0.75,
        rule=rule,
        temperature=temperature,
        scale="raw",
    )
    hidden = masker.hidden(seeds(count), relevance=scores.view(1, 1, 2, 2).expand(count, -1, -1, -1)).view(count, 4)
    share = (hidden if counted_hidden else ~hidden).float().mean(0)
    torch.testing.assert_close(share, (scores / temperature).softmax(0), rtol=0, atol=5 * 0.5 / count**0.5)


def test_temperature_runs_from_the_rule_to_chance() -> None:
    relevance = maps(CLIP, 4)
    plain = build_masker("text_guided", CLIP, 0.6).hidden(seeds(4), relevance=relevance)
    shares = []
    for temperature in (1e-6, 0.1, 1.0, 1e6):
        noised = build_masker("text_guided", CLIP, 0.6, temperature=temperature)
        shares.append((noised.hidden(seeds(4), relevance=relevance) & plain).sum() / plain.sum())
    assert shares[0] == 1
    assert shares == sorted(set(shares), reverse=True)
    assert abs(shares[-1] - 0.6) < 0.03


@pytest.mark.parametrize("scope", ["slot", "clip", "tube"])
def test_sources_are_mixed_by_weight_on_mid_ranks(scope: str) -> None:
    """Against the definition: the share of the group below, half of the equal ones counted, by comparing all pairs."""
    grid = Grid(3, 4, 5)
    relevance, motion = maps(grid, 2, levels=4), maps(grid, 2, seed=1)
    masker = build_masker("text_guided", grid, 0.5, sources={"text": 3, "motion": 1.0}, scope=scope)
    mixed = masker.saliency(seeds(2), relevance=relevance, motion=motion)

    def ranks(x: Tensor) -> Tensor:
        x = x.mean(1, keepdim=True) if scope == "tube" else x
        groups = x.flatten(1)[:, None] if scope == "clip" else x.flatten(2)
        below = (groups[..., None, :] < groups[..., None]).sum(-1)
        equal = (groups[..., None, :] == groups[..., None]).sum(-1) - 1
        return ((below + equal / 2) / (groups.shape[-1] - 1)).view_as(x)

    torch.testing.assert_close(mixed, 0.75 * ranks(relevance) + 0.25 * ranks(motion), rtol=0, atol=1e-6)


def test_a_source_that_says_nothing_leaves_the_choice_to_the_other() -> None:
    relevance = maps(CLIP, 2)
    alone = build_masker("text_guided", CLIP, 0.6).hidden(seeds(2), relevance=relevance)
    mixed = build_masker("text_guided", CLIP, 0.6, sources={"text": 0.1, "motion": 0.9})
    assert torch.equal(mixed.hidden(seeds(2), relevance=relevance, motion=torch.zeros_like(relevance)), alone)


def test_the_units_of_a_source_do_not_matter() -> None:
    relevance = maps(CLIP, 2)
    masker = build_masker("text_guided", CLIP, 0.6, sources={"text": 0.5, "random": 0.5}, temperature=0.1)
    same = masker.hidden(seeds(2), relevance=relevance)
    assert torch.equal(masker.hidden(seeds(2), relevance=1000 * relevance**3 - 5), same)


def test_frames_are_hidden_whole() -> None:
    hidden = build_masker("frame", CLIP, 0.875).hidden(seeds(400)).flatten(2)
    per_slot = hidden.sum(2)
    assert ((per_slot == 0) | (per_slot == 196)).all()
    assert ((per_slot == 0).float().mean(0) - 1 / 8).abs().max() < 5 * (7 / 64 / 400) ** 0.5


def test_cuboids_against_a_plain_loop() -> None:
    grid = Grid(4, 6, 7)
    scores = saliency.cuboids(SaliencyInputs(seeds(3), grid, {}, 0.4))
    draws = [saliency._inside(seeds(3), axis, length) for axis, length in enumerate((4, 6, 7))]
    for clip in range(3):
        expected = torch.zeros(4, 6, 7)
        for cuboid in reversed(range(saliency.CUBOIDS)):  # the first is written last
            spans = [draw[clip, cuboid].nonzero().flatten() for draw in draws]
            assert all((span.diff() == 1).all() for span in spans)
            assert len(spans[1]) <= 3 + 1 and len(spans[2]) <= 3.5 + 1  # at most half a side, and a token cut
            if all(map(len, spans)):
                expected[tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)] = saliency.CUBOIDS - cuboid
        assert torch.equal(scores[clip], expected)


def test_blocks_hang_together_and_fall_on_every_place_alike() -> None:
    def neighbours(recipe: str) -> float:
        hidden = build_masker(recipe, CLIP, 0.6).hidden(seeds(64))
        return float((hidden[..., 1:] & hidden[..., :-1]).sum() / hidden[..., 1:].sum())

    assert abs(neighbours("random") - 0.6) < 0.01
    assert neighbours("block") > 0.85
    frequency = build_masker("block", CLIP, 0.6).hidden(seeds(400)).float().mean(0)
    assert (frequency - 0.6).abs().max() < 5 * (0.6 * 0.4 / 400) ** 0.5


def test_needs_name_the_maps_of_the_sources() -> None:
    assert build_masker("tube", CLIP, 0.9).needs == set()
    assert build_masker("text_guided", CLIP, 0.6).needs == {"relevance"}
    masker = build_masker("tube", CLIP, 0.9, sources={"text": 1, "motion": 1, "random": 1})
    assert masker.needs == {"relevance", "motion"}
    with pytest.raises(ValueError, match=r"masking.recipe=tube needs motion maps.*masking.options.sources"):
        masker(seeds(1), relevance=maps(CLIP, 1), motion=None)


def test_a_recipe_ignores_maps_that_it_does_not_need() -> None:
    masker = build_masker("tube", CLIP, 0.9)
    with_maps = masker(seeds(2), relevance=maps(CLIP, 2), motion=None)
    assert torch.equal(with_maps.visible, masker(seeds(2)).visible)


@pytest.mark.parametrize("scope", ["clip", "slot", "tube"])
def test_every_source_makes_masks_in_every_scope(scope: str) -> None:
    for name in SOURCES:
        own = [recipe for recipe in ("part_based", *LEARNED) if name in RECIPES[recipe].sources]
        recipe = own[0] if own else "random"
        if name == "parts" and scope == "tube":
            continue  # numbers of parts have no mean over slots
        masker = build_masker(recipe, Grid(4, 6, 6), 0.5, sources={name: 1}, scope=scope)
        assert masker(seeds(2), **aux(masker, maps(masker.grid, 2))).visible.shape == (2, 72)
