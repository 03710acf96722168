"""How long a rank may take, whom it waits for, and what happens where its folder is gone."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launch import run
from short_run import arguments, rank_file, start, wait_for_steps

from tgm_scale.contracts import WEEK
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training import watchdog as watchdog_module
from tgm_scale.training.watchdog import NAMING, PHASES, PhaseTimeout, Watchdog, group_seconds


def bounds(timeout: PhaseTimeout, first: int, seconds: list[float]) -> list[float]:
    """The bound of each step's update, for steps of so many seconds."""
    now, found = 0.0, []
    for step, taken in enumerate(seconds, first):
        timeout.limit(step, "data", now)
        found.append(timeout.limit(step, "update", now + 0.01)[0])
        now += taken
    return found


@pytest.mark.parametrize("first", [0, 1000])
def test_every_start_is_given_time_to_compile(first: int) -> None:
    """Not the step numbered 0 alone: a requeued run compiles anew."""
    assert bounds(PhaseTimeout(50), first, [200, 100, 1, 1, 1]) == [1800, 1800, 1000, pytest.approx(505), 50]


def test_a_slow_step_is_no_hang_where_steps_are_slow() -> None:
    assert bounds(PhaseTimeout(50), 0, [90, 60, 60, 60])[2:] == [600, 600]
    timeout = PhaseTimeout(50)
    bounds(timeout, 0, [9, 9, 9])
    bound, reason = timeout.limit(3, "data", 27)
    assert bound == 90 and reason == "10 times the 9.0 s that a step usually takes"
    assert bounds(timeout, 1, [9])[0] == 90, "after a rollback nothing is compiled again"


def test_a_checkpoint_is_given_time_and_counts_in_no_step() -> None:
    timeout = PhaseTimeout(50)
    bounds(timeout, 0, [1, 1, 1, 1])
    assert timeout.limit(3, "checkpoint", 4.0)[0] == 1800
    timeout.limit(4, "data", 900.0)
    assert timeout.limit(5, "data", 901.0) == (50, "faults.hang_seconds=50")


def test_data_may_be_opened_for_hours_and_no_collective_ends_before_the_watchdog(tmp_path: Path) -> None:
    """Rank 0 indexes shards while the others wait; gloo gave up after 10 minutes on CPUs and 30 on GPUs."""
    watchdog = Watchdog(tmp_path, ProcessInfo(0, 2, 0, torch.device("cpu")), 50)
    opening = watchdog._where[3]
    watchdog.opened()
    assert opening == (6 * 3600, "6 hours until the data is open") and watchdog._where[3][0] == 1800
    watchdog.end("done")
    for hang, storage in ((50, 0), (50, 300), (WEEK, WEEK)):
        timeout = PhaseTimeout(hang, storage)
        longest = max(timeout.limit(step, "meeting", float(step))[0] for step in range(9))
        assert group_seconds(hang, storage) > max(longest, opening[0])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "_BEAT", 0.2)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def ranks(folder: Path, *at: tuple[int, str]) -> list[Watchdog]:
    found = [Watchdog(folder, ProcessInfo(rank, len(at), 0, torch.device("cpu")), 60) for rank in range(len(at))]
    for watchdog, (step, phase) in zip(found, at):
        watchdog.at(step, phase)
    time.sleep(0.5)
    return found


def test_a_rank_waits_for_those_behind_it_and_never_for_itself(quick: None, tmp_path: Path) -> None:
    waiting, working, ahead = ranks(tmp_path, (7, "meeting"), (7, "data"), (7, "update"))
    assert waiting.stalled_ranks().startswith("rank 1 on ") and "rank 2" not in waiting.stalled_ranks()
    working.at(7, "meeting")
    assert waiting.stalled_ranks().startswith("no rank in particular")
    (tmp_path / "ranks" / "00001").unlink()
    working.end("done")
    (tmp_path / "ranks" / "00001").unlink()
    assert waiting.stalled_ranks() == "rank 1, which left no word"
    (tmp_path / "ranks" / "00001").write_text('{"state": "runn')
    assert waiting.stalled_ranks() == "rank 1, which left no word"
    for watchdog in (waiting, ahead):
        watchdog.end("done")


def test_a_silent_rank_is_named_whatever_its_clock_says(quick: None, tmp_path: Path) -> None:
    waiting, silent = ranks(tmp_path, (7, "meeting"), (7, "meeting"))
    silent.end("done")
    file = tmp_path / "ranks" / "00001"
    file.write_text(json.dumps({**json.loads(file.read_text()), "state": "running", "time": time.time() + 3600}))
    assert waiting.stalled_ranks().startswith("rank 1 on ")
    waiting.end("done")


def test_of_many_ranks_the_first_look_for_who_hangs(tmp_path: Path) -> None:
    for rank in (NAMING - 1, NAMING):
        watchdog = Watchdog(tmp_path, ProcessInfo(rank, 4096, 0, torch.device("cpu")), 60)
        said = watchdog.stalled_ranks(earlier={})
        assert said.startswith("rank 0, which left no word" if rank < NAMING else "those that the ranks below 64")
        watchdog.end("done")


def test_a_heartbeat_that_dies_stops_the_run(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    (tmp_path / "run").mkdir()
    watchdog = Watchdog(tmp_path / "run", ProcessInfo(0, 1, 0, torch.device("cpu")), 60, reasons.append)
    (tmp_path / "run" / "ranks").rename(tmp_path / "old")
    wait_until((tmp_path / "run" / "ranks" / "00000").is_file)
    assert not reasons
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()  # as a checkpoint does
    wait_until(lambda: bool(reasons))
    assert "moved or deleted" in reasons[0] and not list((tmp_path / "run").iterdir())
    watchdog.end("done")


def test_a_heartbeat_that_fails_in_itself_stops_the_run(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str] = []
    Watchdog(tmp_path, ProcessInfo(0, 1, 0, torch.device("cpu")), 60, reasons.append)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(watchdog_module.patience, "all_waits", lambda: 1 / 0)
    wait_until(lambda: bool(reasons))
    assert reasons == ["the failure of the watchdog of rank 0 (ZeroDivisionError: division by zero)"]


# Real runs from here on.


def test_a_run_of_slow_updates_is_not_taken_for_hung(config: Path) -> None:
    """hang_seconds below what an update takes; the watchdog looks every 5 seconds."""
    more = ["train.global_batch_size=128", "train.micro_batch_size=2", "train.steps=7", "faults.hang_seconds=0.05"]
    run(2, arguments(config, *more))
    assert len(read_metrics(config.parent / "run")) == 7


def ended(process: subprocess.Popen[str], code: int) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def test_one_start_at_a_time_and_a_killed_one_is_followed_to_the_bit(config: Path) -> None:
    folder = config.parent / "run"
    first = start(config, 1)
    try:
        wait_for_steps(folder, 12)
        refused = ended(start(config, 1), 2)
        assert f"run.dir={folder}: in use by another start" in refused and f"pid {first.pid}" in refused
        wait_for_steps(folder, 22)
    finally:
        first.kill()
        first.wait()
    before = {row["step"]: row["loss"] for row in read_metrics(folder)}
    second = start(config, 1, "train.max_minutes=0.1")
    output = ended(second, 85)
    after = {row["step"]: row["loss"] for row in read_metrics(folder)}
    resumed = int(output.split("resuming from step ")[1].split()[0])
    again = [step for step in before if step > resumed and step in after]
    assert again and all(before[step] == after[step] for step in again)


def test_a_run_whose_folder_is_moved_saves_and_stops(config: Path) -> None:
    folder = config.parent / "run"
    process = start(config, 1, "train.steps=100000")
    wait_for_steps(folder, 3)
    folder.rename(config.parent / "moved")
    output = ended(process, 85)
    assert f"by its run folder {folder}, which was moved or deleted" in output and "Traceback" not in output
    assert list(folder.glob("checkpoints/step-*/manifest.json"))
    assert PHASES and rank_file(config.parent / "moved", 0)["pid"] == process.pid


def test_a_server_that_is_waited_for_is_no_hang() -> None:
    timeout = PhaseTimeout(50, storage_seconds=300)
    for step in range(4):
        for phase in ("data", "meeting", "update"):
            bound, why = timeout.limit(step, phase, float(step))
            if step == 3:
                assert bound == (50 if phase == "update" else 350), why
