"""The order: every sample once an epoch, a pure function of (seed, position), exact shares of several corpora."""

from __future__ import annotations

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgm_scale.data.loading.order import Mixture, Order

uneven_shards = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)
windows = st.integers(1, 14)


@given(uneven_shards, st.integers(0, 2**62), windows, st.integers(0, 5))
def test_each_sample_comes_once_an_epoch(counts: list[int], seed: int, window: int, epoch: int) -> None:
    order = Order(np.array(counts), seed, window)
    length = sum(counts)
    places = [order.locate(epoch * length + i) for i in range(length)]
    assert {place[0] for place in places} == {epoch}
    every_sample = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert sorted((shard, row) for _, shard, row in places) == every_sample


@given(uneven_shards, st.integers(0, 2**62), windows, st.lists(st.integers(0, 200), min_size=1))
def test_a_position_says_the_same_whatever_was_asked_before(
    counts: list[int], seed: int, window: int, positions: list[int]
) -> None:
    asked_in_turn = Order(np.array(counts), seed, window)
    sent_to_a_worker = pickle.loads(pickle.dumps(asked_in_turn))
    for position in positions:
        place = asked_in_turn.locate(position)
        assert place == Order(np.array(counts), seed, window).locate(position) == sent_to_a_worker.locate(position)


@given(uneven_shards, st.integers(0, 2**62), windows)
def test_samples_stay_within_their_window_of_shards(counts: list[int], seed: int, window: int) -> None:
    order = Order(np.array(counts), seed, window)
    shards = [order.locate(position)[1] for position in range(sum(counts))]
    first, last = {}, {}
    for position, shard in enumerate(shards):
        first.setdefault(shard, position)
        last[shard] = position
    for position in range(len(shards)):
        in_use = sum(first[shard] <= position <= last[shard] for shard in first)
        assert in_use <= window


def test_epochs_and_seeds_differ_and_shuffling_reaches_across_shards() -> None:
    def epoch(seed: int, number: int) -> list[tuple[int, int]]:
        order = Order(np.full(8, 25), seed, 4)
        return [order.locate(number * 200 + i)[1:] for i in range(200)]

    assert len({tuple(epoch(seed, number)) for seed in range(3) for number in range(3)}) == 9
    shards_of_a_batch = {shard for shard, _ in epoch(0, 0)[:16]}
    assert len(shards_of_a_batch) == 4


def test_within_a_window_any_sample_comes_first_equally_often() -> None:
    counts, seeds = np.array([1, 5, 2]), 4000
    drawn = Counter(Order(counts, seed, 3).locate(0)[1:] for seed in range(seeds))
    assert len(drawn) == 8
    chi_squared = sum((count - seeds / 8) ** 2 / (seeds / 8) for count in drawn.values())
    assert chi_squared < 24.3  # 7 degrees of freedom: one in a thousand


def test_memory_does_not_grow_with_the_run() -> None:
    order = Order(np.full(10, 3), 0, 2)
    for position in range(0, 3000, 7):
        order.locate(position)
    assert len(pickle.dumps(order)) < 1000
    assert max(len(order._epoch.results), len(order._window.results)) <= 4


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_an_empty_corpus_is_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="corpus is empty"):
        Order(np.array(counts, dtype=np.int64), 0, 4)


def mixture(weights: list[float] | None, lengths: list[int]) -> Mixture:
    return Mixture([Order(np.array([length]), i, 1) for i, length in enumerate(lengths)], weights)


weight = st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.7, 1, 2, 3.5])


@given(st.lists(weight, min_size=1, max_size=5))
def test_each_corpus_has_its_exact_share_evenly_spread(weights: list[float]) -> None:
    mixed = mixture(weights, [7] * len(weights))
    fractions = [Fraction(str(w)) for w in weights]
    shares = [w / sum(fractions) for w in fractions]
    cycle = int(np.lcm.reduce([share.denominator for share in shares]))
    turns = [mixed.turn(position) for position in range(2 * cycle)]
    for corpus, share in enumerate(shares):
        own = [position for position, (who, _) in enumerate(turns) if who == corpus]
        assert len([position for position in own if position < cycle]) == share * cycle
        assert [turns[position][1] for position in own] == list(range(len(own)))
        taken = np.cumsum([who == corpus for who, _ in turns])
        ideal = np.array([float(share * (position + 1)) for position in range(len(turns))])
        assert np.abs(taken - ideal).max() < 2


def test_without_weights_corpora_end_their_epochs_together() -> None:
    mixed = mixture(None, [30, 10, 5])
    places = [mixed.locate(position) for position in range(90)]
    for epoch, part in enumerate((places[:45], places[45:])):
        assert {place.epoch for place in part} == {epoch}
        assert len(set(part)) == 45


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError, match=r"data.weights has 1 entries for 2 corpora"):
        mixture([1.0], [3, 3])
    with pytest.raises(ValueError, match=r"above 0"):
        mixture([1.0, 0.0], [3, 3])
