"""A run folder has one owner, and one that died is followed without a person."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tgm_scale.runtime import ownership
from tgm_scale.runtime.ownership import Owner, owned, take, this_start

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from tgm_scale.runtime import ownership
ownership.BEAT = 0.2
with ownership.owned(Path(sys.argv[1])):
    print("owns", flush=True)
    time.sleep(60)
"""


def elsewhere(**changes: object) -> Owner:
    """A start on another host."""
    return replace(Owner("node7", 4711, "boot namespace 0 99", "8"), **changes)  # type: ignore[arg-type]


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "owns\n"
    return process


def test_a_second_start_is_refused_and_a_killed_one_followed_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(
            ValueError, match=rf"run.dir=.*in use.*{os.uname().nodename}, pid {process.pid}, .*job 8.*s ago"
        ):
            take(tmp_path, this_start())
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    began = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - began < 1
    with owned(tmp_path):
        pass
    assert sorted(file.name for file in (tmp_path / "owner").iterdir()) == ["000002", "000003"]


def test_an_owner_on_another_host_is_dead_when_its_count_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clocks say: the file is as old as can be, and then from the future."""
    monkeypatch.setattr(ownership, "WATCHED", 1.0)
    for stamp in (0, 4e9):
        number = take(tmp_path, elsewhere())
        os.utime(tmp_path / "owner" / f"{number:06d}", (stamp, stamp))
        began = time.monotonic()
        assert take(tmp_path, this_start()) == number + 1
        assert 1 <= time.monotonic() - began < 3
        ownership._write_count(tmp_path / "owner" / f"{number + 1:06d}", "ended")


def test_an_owner_on_another_host_lives_while_it_counts(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(ValueError, match=f"in use.*pid {process.pid}"):
            take(tmp_path, elsewhere(job="9", process="unknown"))  # it cannot look at that process
    finally:
        process.kill()
        process.wait()


def test_a_requeued_job_follows_its_earlier_start_at_once(tmp_path: Path) -> None:
    take(tmp_path, elsewhere())
    began = time.monotonic()
    assert take(tmp_path, elsewhere(host="node9", process="other namespace 0 5", restart=1)) == 2
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("removed", [False, True], ids=["one after it", "two after it"])
def test_a_process_that_lost_its_folder_ends(tmp_path: Path, removed: bool) -> None:
    """It was stopped for so long that another start took over; then it goes on. A third start removes its file."""
    process = holder(tmp_path)
    own = tmp_path / "owner" / "000001"
    text = own.read_text()
    if removed:
        own.unlink()
    (tmp_path / "owner" / "000003").write_text(text)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2 and "another start" in said and "took it over" in said


@pytest.mark.parametrize("damage", ["", "{}\n", '{"host": 1', "[]\n", "\0\0\0"])
def test_a_damaged_owner_is_watched_and_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(ownership, "WATCHED", 0.1)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "000001").write_text(damage)
    (tmp_path / "owner" / "notes.txt").write_text("not ours")
    assert take(tmp_path, this_start()) == 2


def race(pipe: Connection) -> None:
    """Take the folders that come, each at the given moment; say whether it was got."""
    while (work := pipe.recv()) is not None:
        folder, moment = work
        while time.monotonic() < moment:
            pass
        try:
            take(folder, this_start())
            pipe.send(True)
        except ValueError:
            pipe.send(False)


def test_of_starts_at_the_same_moment_exactly_one_wins(tmp_path: Path) -> None:
    """20 new folders and 20 whose owner is dead."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(3):
        ours, theirs = context.Pipe()
        process = context.Process(target=race, args=(theirs,), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for number in range(40):
        folder = tmp_path / str(number)
        if number % 2:
            take(folder, replace(this_start(), process=ownership._identity(os.getpid())[:-1] + "x"))  # type: ignore[index]
        for pipe in pipes:
            pipe.send((folder, time.monotonic() + 0.05))
        won = [pipe.recv() for pipe in pipes]
        assert won.count(True) == 1, (number, won)
    for pipe, process in zip(pipes, processes):
        pipe.send(None)
        process.join(10)


def test_the_count_goes_on_whatever_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that died would leave the folder to the next start while this one still writes."""
    failures = iter([ValueError("no file"), MemoryError(), OSError("a full disk")])
    write = ownership._write_count

    def at_first(file: Path, count: str) -> None:
        for error in failures:
            raise error
        write(file, count)

    monkeypatch.setattr(ownership, "BEAT", 0.02)
    monkeypatch.setattr(ownership, "_write_count", at_first)
    with ownership.owned(tmp_path):
        end = time.monotonic() + 10
        while int((tmp_path / "owner" / "000001").read_text().splitlines()[1]) < 5:
            assert time.monotonic() < end
            time.sleep(0.02)
