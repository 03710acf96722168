"""The bottleneck line: which rank waits, for what, and how many cores would cure it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tgm_scale.config.sections import GuidanceConfig
from tgm_scale.runs.bottleneck import Rank, explain, from_metrics, read_ranks, recent_shares, workers_wanted
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training.watchdog import Watchdog


def ranks(*shares: dict[str, float]) -> list[Rank]:
    whole = [{"update": 1 - sum(share.values())} | share for share in shares]
    return [Rank(number, f"node{number // 2}", share) for number, share in enumerate(whole)]


def tree(**guidance: object) -> dict[str, Any]:
    given = GuidanceConfig.model_validate({"towers": "small"} | guidance)
    return {"data": {"workers": 8}, "guidance": given.model_dump()}


GUIDANCE = [
    "guidance.frames_per_tubelet=one",
    "guidance.resolution=N",
    "`tgm-scale shards cache`",
    "data.shards",
    "guidance.cached=true",
]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (ranks({}, {}), ["none: 100%"]),
        (
            ranks({"data": 0.05, "meeting": 0.35}, {"meeting": 0.4}, {"meeting": 0.4}, {"data": 0.4}),
            [
                "data: rank 3 on node1 waits for clips 40%",
                "least of all ranks: 0%",
                "data.workers=14 instead",
                "--gop",
            ],
        ),
        (ranks({"guidance": 0.5, "data": 0.11}), ["guidance: 50% of the time of rank 0", *GUIDANCE]),
        (
            ranks({"checkpoint": 0.2}, {"checkpoint": 0.21}),
            ["checkpoint: 21% of the time of rank 1", "checkpoint.every"],
        ),
        (ranks({"meeting": 0.3}, {"meeting": 0.25}), ["network: even rank 1 on node0", "25%"]),
        (ranks({"meeting": 0.3}, {}, {"meeting": 0.3}), ["rank 1 on node0: rank 0 on node0 waits 30%"]),
        (from_metrics([{"step_seconds": 2.0, "data_seconds": 1.0, "guidance_seconds": 0.0}]), ["data", "=16"]),
    ],
)
def test_the_line_names_rank_cause_and_remedy(told: list[Rank], words: list[str]) -> None:
    line = explain(told, tree())
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("given", "said", "unsaid"),
    [
        ({"frames_per_tubelet": "one"}, ["set guidance.resolution=N", "`tgm-scale shards cache`"], "frames_per"),
        ({"resolution": 112}, ["frames_per_tubelet=one", "lower guidance.resolution=112"], "resolution=N"),
        ({"cached": True}, ["relevance is cached"], "frames_per"),
        ({"towers": None}, ["masks without towers take it"], "frames_per"),
    ],
)
def test_guidance_is_not_to_be_made_cheaper_by_what_is_set(
    given: dict[str, Any], said: list[str], unsaid: str
) -> None:
    line = explain(ranks({"guidance": 0.5}), tree(**given))
    assert all(word in line for word in said) and unsaid not in line


@pytest.mark.parametrize(("workers", "clips"), [(0, 6), (1, 4), (3, 9)])
def test_the_workers_wanted_cure_the_waiting(workers: int, clips: int) -> None:
    """A step of 1 s beside `clips` clips of 0.5 s each: without waiting it takes workers of clips / 2."""
    step = max(1.0, clips * 0.5 / workers) if workers else 1.0 + clips * 0.5
    assert workers_wanted(workers, (step - 1.0) / step) == -(-clips // 2)


def test_ranks_tell_where_their_time_goes(tmp_path: Path) -> None:
    """The first step is left out, and old steps fade."""
    for rank, slow in enumerate(("data", "update")):
        watchdog = Watchdog(tmp_path, ProcessInfo(rank, 2, 0, torch.device("cpu")), 60)
        for step in range(5):
            for phase in ("data", "guidance", "meeting", "update"):
                watchdog.at(step + 7, phase)
                time.sleep(0.05 if phase == slow or (step == 0 and phase == "guidance") else 0.001)
        watchdog.end("done")
    first, second = read_ranks(tmp_path, 2)
    assert first.shares["data"] > 0.7 and second.shares["update"] > 0.7
    assert first.shares["guidance"] < 0.15 and sum(first.shares.values()) == pytest.approx(1)
    assert read_ranks(tmp_path, 1) == [first], "a rank of an earlier, larger start does not count"
    assert read_ranks(tmp_path / "nowhere", 2) == []


@pytest.mark.parametrize(("seconds", "share"), [(0.5, 0.6), (6.0, 0.0)])
def test_a_heartbeat_of_a_part_of_a_step_is_not_what_the_run_did(tmp_path: Path, seconds: float, share: float) -> None:
    """A run that was killed after its fourth step: its last heartbeat may be of the second."""
    (tmp_path / "ranks").mkdir()
    beat = {"host": "n1", "seconds": {"data": 0.0, "guidance": 0.0, "update": seconds}}
    (tmp_path / "ranks" / "00000").write_text(json.dumps(beat))
    times = {"step_seconds": 2.0, "data_seconds": 1.2, "guidance_seconds": 0.0, "samples": 8, "skipped_samples": 0}
    found, steps = recent_shares(tmp_path, 1, [{"step": step, **times} for step in range(1, 5)], [{"step": 0}])
    assert found[0].shares["data"] == pytest.approx(share) and steps == 3


def test_a_pipe_in_the_place_of_a_ranks_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    os.mkfifo(tmp_path / "ranks" / "00000")
    assert read_ranks(tmp_path, 2) == []
