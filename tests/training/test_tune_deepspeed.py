"""`tgm-scale tune`: real trials, none made twice, and what does not fit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from launch import run
from short_run import MODEL

CONFIG = (
    MODEL
    + """
train: {{steps: 400, global_batch_size: 8, micro_batch_size: 8}}
"""
)


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.format(run=tmp_path / "run", shards=shards))
    return file


def tune(config: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    where = ["--config", str(config), "--dir", str(config.parent / "tune"), "--steps", "3", "--warm", "1"]
    return run(1, ["-m", "tgm_scale", "tune", *where, *options], code)


def outcomes(config: Path) -> dict[str, dict]:
    lines = (config.parent / "tune" / "outcomes.jsonl").read_text().splitlines()
    rows = {row["name"]: row for row in map(json.loads, lines)}
    assert len(rows) == len(lines), "a candidate was tried twice"
    return rows


@pytest.mark.slow
def test_the_fastest_of_real_trials_is_named_and_runs(config: Path) -> None:
    few = ["--processes", "2", "--stages", "2", "--offloads", "none", "--micro-batches", "2"]
    said = tune(config, *few).stdout
    found = outcomes(config)
    # first the configuration as it is, with the micro batch that two processes allow
    # and with the fastest a data worker, where the configuration has none
    tried = ["zero0-micro4", "zero2-micro2", "zero2-micro2-checkpointing"]
    assert list(found)[:3] == tried and [name.rpartition("-workers")[2] for name in list(found)[3:]] == ["1"]
    assert all(
        row["outcome"] == "ran" and row["clips_per_second"] > 0 and len(row["losses"]) == 3 for row in found.values()
    )
    assert not list((config.parent / "tune").glob("*/run/checkpoints/step-*"))
    best = max(found, key=lambda name: found[name]["clips_per_second"])
    of_stage_2 = sum(name.startswith("zero2-") for name in found)  # with that of a worker where one of them is best
    assert f"fastest that fits: {best}" in said and said.count("| 2 | none | 2 |") == of_stage_2 >= 2
    assert tune(config, *few).stdout == said, "the same outcomes, and no new trial"
    outcomes(config)
    folder = config.parent / "tune"
    assert json.loads((folder / "best.json").read_text()) == {"zero_optimization": {"stage": int(best[4])}}
    overrides = (folder / "best.overrides").read_text().split()
    run(2, ["-m", "tgm_scale", "pretrain", "--config", str(config), *overrides, "train.steps=1"])
    other = tune(config, *few, "masking.mask_ratio=0.5", code=2)
    assert "holds trials of another configuration" in other.stderr


def test_what_does_not_fit_is_told_and_larger_ones_are_left_out(config: Path) -> None:
    few = ["--processes", "1", "--stages", "0", "--offloads", "none", "--micro-batches", "4,8", "--keep-free", "1e5"]
    done = tune(config, *few, code=4)
    assert "nothing fits" in done.stderr and "Traceback" not in done.stderr
    found = outcomes(config)
    assert {row["outcome"] for row in found.values()} == {"out of memory"}
    assert "zero0-micro8-checkpointing" not in found and "micro batch 4 did not fit" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--micro-batches", "3"], ["--micro-batches 3", "wanted one of 1, 2, 4, 8"]),
        (["--stages", "2,4"], ["--stages 2,4", "'4'", "0 to 3"]),
        (["--offloads", "disk"], ["--offloads disk", "optimizer"]),
        (["--stages", "0", "--offloads", "all"], ["stage 3"]),
        (["--processes", "3"], ["train.global_batch_size=8", "--processes 3"]),
        (["--warm", "3"], ["--warm 3"]),
        (["--processes", "2", "--nodes", "4"], ["--nodes 4", "--processes 2"]),
    ],
)
def test_a_mistake_is_told_before_any_trial(config: Path, options: list[str], words: list[str]) -> None:
    said = tune(config, *options, code=2).stderr
    assert all(word in said for word in words), said
    assert not (config.parent / "tune").exists()
