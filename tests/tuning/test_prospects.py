"""What the tuner says of a larger card and of more nodes is the planner's arithmetic."""

from __future__ import annotations

import re

import pytest

from tgm_scale import config as configuration
from tgm_scale.planning import cards
from tgm_scale.tuning.prospects import prospects

ONE = ["train.global_batch_size=8", "train.micro_batch_size=1", "data.repeated_augmentation=1"]


def test_the_next_larger_card_and_twice_the_nodes_are_planned() -> None:
    config = configuration.load("configs/pretrain_vitl.yaml", ["guidance.towers=small"])
    larger, more = prospects(config, (2, 8), cards.of_name("A100-SXM4-40GB"), 100.0)
    # by the ratio of the two cards' peaks, less what the network takes of both
    words = re.fullmatch(
        r"L40S of 48 GB: ([\d.]+) times the speed, micro batch up to (\d+), (\d+) clips/s planned", larger
    )
    assert words and 1 < float(words[1]) <= 362 / 312 + 0.005 and int(words[2]) >= 8
    assert int(words[3]) == pytest.approx(100 * float(words[1]), abs=1)
    words = re.fullmatch(r"4 nodes of 8 GPUs: ([\d.]+) times the speed, (\d+) clips/s planned", more)
    assert words and 1 < float(words[1]) < 2


def test_nodes_over_which_the_batch_does_not_divide_are_said() -> None:
    config = configuration.load("configs/pretrain_vitl.yaml", ["guidance.towers=small", *ONE])
    assert "train.global_batch_size" in prospects(config, (1, 8), cards.of_name("H100"), 1.0)[1]


def test_without_a_card_of_the_table_nothing_is_planned() -> None:
    config = configuration.load("configs/debug.yaml", [])
    [line] = prospects(config, (1, 2), None, 1.0)
    assert "not planned" in line
