"""Real faults: a diverging run, a rank that hangs or dies, a full disk."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from disks import small_disk
from launch import run
from short_run import arguments, rank_file, start, wait_for_steps

from tgm_scale.checkpoints import checkpoint, folders
from tgm_scale.contracts import Batch
from tgm_scale.runs.faults import FaultState, SpikeDetector, leave_out
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runs.status import status


def test_a_diverging_run_refuses_rolls_back_and_stops(config: Path) -> None:
    # every loss above 1.0001 times the median of those before is a spike: the first ones decide which steps that is
    overrides = ["faults.spike_factor=1.0001", "faults.refused_before_rollback=2", "faults.rollbacks=1"]
    done = run(1, arguments(config, *overrides, "optim.base_lr=3"), code=4)
    folder = config.parent / "run"
    assert "rolling back from step" in done.stdout
    assert "stopped: updates were refused up to step" in done.stderr and "optim.base_lr" in done.stderr
    assert "Traceback" not in done.stderr
    state = FaultState.load(folder)[0]
    refused = [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]
    assert state.rollbacks == 1 and len(refused[0]["keys"]) == 8 and refused[0]["reason"] == "spike"
    steps = [row["step"] for row in refused]
    first = next(i for i in range(len(steps) - 1) if steps[i + 1] == steps[i] + 1)
    assert first > 0, "some updates were refused alone before two in a row were: their samples are innocent"
    assert state.skip_list == sorted({*refused[first]["keys"], *refused[first + 1]["keys"]})
    assert any(
        json.loads(line)["reason"] == "skip_list" for line in (folder / "skipped.jsonl").read_text().splitlines()
    )
    rows = read_metrics(folder)
    steps = [row["step"] for row in rows]
    assert steps == list(range(1, len(steps) + 1)), "a rollback leaves neither gaps nor doubles"
    assert done.stderr.count("its update was skipped: spike; refused.jsonl names its clips") == len(refused)
    skipped = sum(row["update_refused"] for row in rows)
    assert skipped and f"{skipped} of {len(rows)} ({skipped} spike), see refused.jsonl" in status(str(folder))


def test_the_skip_list_takes_the_weight_and_names_a_sample_once() -> None:
    one, weight = torch.ones(5), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    batch = Batch(one, list("abbcd"), ["s/1", "s/2", "s/2", "s/3", "s/4"], one, weight, one, one, one)
    leave_out(batch, {"s/4", "s/3", "s/2"}.__contains__, "skip_list")
    assert batch.weight.tolist() == [1, 0, 0, 0, 0]
    named = [(problem.key, problem.reason) for problem in batch.problems]
    assert named == [("s/2", "skip_list"), ("s/3", "skip_list")], "what has no weight is named by whoever took it"


def test_a_hung_rank_stops_the_others_and_is_named(config: Path) -> None:
    folder = config.parent / "run"
    process = start(config, 2, "faults.hang_seconds=8")
    wait_for_steps(folder, 3)
    hung = rank_file(folder, 1)["pid"]
    os.kill(hung, signal.SIGSTOP)
    began = time.monotonic()
    try:
        while rank_file(folder, 0)["state"] == "running":
            assert time.monotonic() - began < 60, "rank 0 still waits"
            time.sleep(0.2)
    finally:
        os.kill(hung, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"rank 1 on {rank_file(folder, 0)['host']} (pid {hung})" in output, output


@pytest.mark.parametrize(("losses", "limit"), [([2.0] * 20, 6.0), ([-0.05] * 20, math.inf), ([2.0] * 19, math.inf)])
def test_a_loss_that_may_be_below_zero_has_no_limit_by_its_median(losses: list[float], limit: float) -> None:
    """With `adversary` the median may be negative, and three times it is below every loss."""
    assert SpikeDetector(3.0, losses).limit() == limit


def test_a_dead_rank_stops_the_run_within_a_minute(config: Path) -> None:
    folder = config.parent / "run"
    process = start(config, 2)
    wait_for_steps(folder, 3)
    began = time.monotonic()
    os.kill(rank_file(folder, 1)["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert "rank" in output and ": 1 (local_rank: 1)" in output, "torchrun names the rank that died"


def test_a_full_disk_leaves_the_last_checkpoint_and_says_why(config: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 60 << 10) as disk:  # room for three checkpoints of the tiny model, 12 MB each
        root = disk / "run" / "checkpoints"
        process = start(config, 1, f"run.dir={disk / 'run'}")
        while process.poll() is None:
            if folders.steps_in(root):  # somebody else fills the disk
                with (disk / "filler").open("ab") as filler:
                    filler.write(bytes(max(0, shutil.disk_usage(disk).free - (2 << 20))))
            time.sleep(0.02)
        said = process.communicate()[0]
        assert process.returncode == 1 and "Traceback" not in said, said
        assert re.search(
            r"checkpoint of step \d+ .*rank 0: no space left in .* bytes free, [\d,]+ bytes wanted", said
        ), said
        newest = folders.latest(root)
        assert newest is not None
        checkpoint.Reader(newest).verify()


def test_the_time_limit_checkpoints_and_asks_for_requeueing(config: Path) -> None:
    run(1, arguments(config, "train.max_minutes=0.05"), code=85)
    root = config.parent / "run" / "checkpoints"
    assert folders.steps_in(root)[-1] == len(read_metrics(config.parent / "run")) < 400


def test_retention_keeps_the_newest_and_the_multiples() -> None:
    steps = list(range(5, 55, 5))
    assert checkpoint.Retention(2).dropped(steps) == steps[:-2]
    assert checkpoint.Retention(2, 20).dropped(steps) == [5, 10, 15, 25, 30, 35]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_data_worker_costs_no_step_and_has_an_exit_code_of_its_own(config: Path, world_size: int) -> None:
    """As the kernel kills one when memory is full: of one rank, and all ranks save what they have."""
    folder = config.parent / "run"
    process = start(config, world_size, "data.workers=1", "checkpoint.every=1000", "train.steps=1000")
    wait_for_steps(folder, 3)
    trainer = rank_file(folder, world_size - 1)["pid"]
    workers = [
        child.pid
        for child in psutil.Process(trainer).children(recursive=True)
        if any("forkserver" in word for word in child.cmdline()) and not child.children()
    ]
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (87 if world_size == 1 else 1), output
    assert "stopped: a data worker died" in output and "data.workers" in output
    assert "Traceback" not in output or world_size > 1, "torchrun has one of its own"
    assert folders.steps_in(folder / "checkpoints") == [len(read_metrics(folder))], "no step is lost"
    assert world_size == 1 or "a data worker of another rank died" in output
