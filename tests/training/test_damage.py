"""Damaged run folders: what is damaged is set aside and said, and the run resumes from what is whole."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import ROOT, run
from made_checkpoint import edited, made
from short_run import arguments

from tgm_scale.checkpoints import checkpoint, folders, manifest
from tgm_scale.checkpoints.manifest import sums
from tgm_scale.checkpoints.saver import Pending, Saver
from tgm_scale.runs.check_run import check
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runs.resume import Resume
from tgm_scale.runs.status import status
from tgm_scale.runtime.command import code_of
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo

ALONE = ProcessInfo(0, 1, 0, torch.device("cpu"))


def flip(file: Path) -> None:
    """One bit, in the last tensor."""
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def state_of(folder: Path) -> Path:
    return next(folder.glob("state-*"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "manifest empty": lambda folder: (folder / manifest.NAME).write_text(""),
    "manifest a list": lambda folder: (folder / manifest.NAME).write_text("[]"),
    "manifest nested": lambda folder: (folder / manifest.NAME).write_text("[" * 100_000),
    "manifest gone": lambda folder: (folder / manifest.NAME).unlink(),
    "manifest edited": lambda folder: (folder / manifest.NAME).write_text(
        (folder / manifest.NAME).read_text().replace('"updates": 30', '"updates": 20')
    ),
    "no files": lambda folder: edited(folder, lambda tree: tree.pop("files")),
    "no progress": lambda folder: edited(folder, lambda tree: tree.pop("progress")),
    "a step of -5": lambda folder: edited(folder, lambda tree: tree["progress"].update(step=-5)),
    "another step": lambda folder: edited(folder, lambda tree: tree["progress"].update(step=25)),
    "a file elsewhere": lambda folder: edited(
        folder, lambda tree: tree["files"][0].update(name="../step-00000020/state-00000-of-00001.safetensors")
    ),
    "state cut": lambda folder: state_of(folder).write_bytes(state_of(folder).read_bytes()[:-10]),
    "state gone": lambda folder: state_of(folder).unlink(),
    "state no safetensors": lambda folder: state_of(folder).write_bytes(b"\xff" * state_of(folder).stat().st_size),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "checkpoints"
    before, newest = made(root, 20), made(root, 30)
    DAMAGE[kind](newest)
    assert Resume(tmp_path, HostCollectives(ALONE)).newest == before
    assert newest.is_dir(), "it is set aside when the one before is found whole, not earlier"


def test_a_checkpoint_of_a_later_version_stops_and_stays(tmp_path: Path) -> None:
    """It is whole: an older version does not set it aside and go on from the one before."""
    root = tmp_path / "checkpoints"
    made(root, 20)
    edited(made(root, 30), lambda tree: tree.update(format=manifest.FORMAT + 1))
    with pytest.raises(ValueError, match=r"step-00000030/manifest\.json: format 2, this version reads 1: resume with"):
        Resume(tmp_path, HostCollectives(ALONE))
    assert sorted(path.name for path in root.iterdir()) == ["step-00000020", "step-00000030"]


def test_only_damaged_checkpoints_stop_the_run_and_stay(tmp_path: Path) -> None:
    folders = [made(tmp_path / "checkpoints", step) for step in (20, 30)]
    for folder in folders:
        state_of(folder).unlink()
    for _ in range(2):  # the second start must not begin anew
        with pytest.raises(ValueError, match="every checkpoint is damaged") as refused:
            Resume(tmp_path, HostCollectives(ALONE))
        assert all(str(folder) in str(refused.value) for folder in folders)


def test_what_cannot_be_read_for_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network file system answers while its server is restarted: another start finds the checkpoint whole."""
    newest = made(tmp_path / "checkpoints", 30)

    def stale(path: Path) -> str:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    for name in ("tgm_scale.checkpoints.checkpoint.digest", "tgm_scale.checkpoints.manifest._tree"):
        with monkeypatch.context() as patch:
            patch.setattr(name, stale)
            with pytest.raises(OSError, match="Stale file handle"):
                Resume(tmp_path, HostCollectives(ALONE)).restore(None)
    assert [folder.name for folder in newest.parent.iterdir()] == [newest.name]


def test_sums_of_a_file_tell_any_damage(tmp_path: Path) -> None:
    """Of bits, words, blocks, lengths; also in what is no whole block. Each change is made alone."""
    rng = np.random.default_rng(0)
    block, file = 8 * 512 * 512, tmp_path / "state"
    whole = rng.integers(0, 256, 2 * block + 1001, np.uint8)

    def of(content: np.ndarray) -> str:
        file.write_bytes(content.tobytes())
        return sums(file)

    def swapped(first: int, second: int, size: int) -> np.ndarray:
        other = whole.copy()
        other[first : first + size], other[second : second + size] = (
            whole[second : second + size],
            whole[first : first + size],
        )
        return other

    changed = [whole[:-1], whole[: 2 * block], np.append(whole, np.uint8(0)), whole[::-1]]
    for place in (0, 7, block - 1, block, 2 * block + 1000, *rng.integers(0, len(whole), 12).tolist()):
        other = whole.copy()
        other[place] ^= 1 << int(rng.integers(8))
        changed.append(other)
    changed += [swapped(0, block, block), swapped(0, 8, 8), swapped(0, 4096, 8), swapped(16, 4096 + 40, 8)]
    for start, size in ((0, 512), (block - 64, 128), (4096, 4096)):
        other = whole.copy()
        other[start : start + size] = 0
        changed.append(other)
    found = [of(content) for content in (whole, *changed)]
    assert found[0] == of(whole) and len(set(found)) == len(found)


def test_a_start_compares_the_sums_and_a_checkpoint_without_them_its_hash(tmp_path: Path) -> None:
    for kept in ("sums", "blake2b"):
        folder = made(tmp_path / kept / "checkpoints", 30)
        other = {"sums": "blake2b", "blake2b": "sums"}[kept]
        hashed = {"sums": sums, "blake2b": checkpoint.digest}[kept](state_of(folder))
        edited(folder, lambda tree: tree["files"][0].update({kept: hashed, other: None}))  # noqa: B023
        checkpoint.Reader(folder).verify(quick=True)
        flip(state_of(folder))
        with pytest.raises(ValueError, match="contents differ"):
            checkpoint.Reader(folder).verify(quick=True)


def test_other_names_are_not_checkpoints(tmp_path: Path) -> None:
    newest = made(tmp_path, 30)
    for name in (
        "step-00000040.bak",
        "step-abc",
        "step-000000030",
        "step-40",
        "step--0000005",
        "step-00000050 (copy)",
    ):
        shutil.copytree(newest, tmp_path / name)
    (tmp_path / "step-00000060").touch()
    assert folders.steps_in(tmp_path) == [30] and folders.latest(tmp_path) == newest
    found = checkpoint.newest_whole(tmp_path, {})
    assert found is not None and found.folder == newest


def test_each_rank_compares_its_share_of_the_files(tmp_path: Path) -> None:
    folder = made(tmp_path, 30)
    flip(state_of(folder))
    reader = checkpoint.Reader(folder)
    reader.verify(1, 2)
    for share in [(), (0, 2)]:
        with pytest.raises(ValueError, match="contents differ"):
            reader.verify(*share)


def test_an_old_checkpoint_that_cannot_be_dropped_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    elsewhere = made(tmp_path / "elsewhere", 10)
    root = tmp_path / "checkpoints"
    for step in (20, 30):
        made(root, step)
    (root / elsewhere.name).symlink_to(elsewhere)  # which rmtree refuses
    saver = Saver(root, checkpoint.Retention(1), ALONE, HostCollectives(ALONE))
    saver._drop()
    saver._drop()
    said = capsys.readouterr().err
    assert folders.steps_in(root) == [10, 30]
    assert said.count("warning") == 1 and elsewhere.name in said and "the run continues" in said


def test_what_a_kill_left_of_an_old_checkpoint_is_no_checkpoint_and_goes_with_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20):
        made(tmp_path, step)
    saver = Saver(tmp_path, checkpoint.Retention(1), ALONE, HostCollectives(ALONE))

    def killed(folder: Path) -> None:
        (folder / "manifest.json").unlink()  # the order of a folder's files is the file system's
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("tgm_scale.checkpoints.saver.shutil.rmtree", killed)
        saver._drop()
    assert folders.steps_in(tmp_path) == [20] and not (tmp_path / "step-00000010").exists()
    assert any(tmp_path.glob(".dropped-*/*"))
    saver._drop()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000020"]


def test_no_rank_waits_while_an_old_checkpoint_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20):
        made(tmp_path, step)
    answered, remove = threading.Event(), shutil.rmtree

    def slowly(folder: Path) -> None:
        assert answered.wait(60)
        remove(folder)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    saver = Saver(tmp_path, checkpoint.Retention(1), ALONE, HostCollectives(ALONE))
    saver._pending = pending = Pending(tmp_path, checkpoint.Progress(step=30, updates=30), {}, ALONE)
    assert pending.make_folder() is None
    pending.start({"w.weight": torch.ones(2)})
    assert saver.finish() == folders.folder_of(tmp_path, 30)
    assert {20, 30} <= set(folders.steps_in(tmp_path)), "the storage has not answered for step 10 yet"
    answered.set()
    saver.settle()
    assert folders.steps_in(tmp_path) == [30]


def test_a_step_that_is_saved_is_not_written_again(tmp_path: Path) -> None:
    """As where a worker dies after a step that was due: with checkpoint.keep=1 a kill meanwhile would leave none."""
    folder = made(tmp_path, 30)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    saver = Saver(tmp_path, checkpoint.Retention(1), ALONE, HostCollectives(ALONE))
    saver.begin(None, checkpoint.Reader(folder).progress, {})  # no engine: nothing is gathered
    saver.finish()
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    others = replace(checkpoint.Reader(folder).progress, losses=[1.0])
    with pytest.raises(AttributeError):  # another state of that step is gathered
        saver.begin(None, others, {})
    pending = Pending(tmp_path, others, {}, ALONE)
    assert pending.make_folder() is None
    pending.start({"w.weight": torch.ones(2)})
    assert pending.commit([pending.wait()]) is None
    assert checkpoint.Reader(folder).progress == others
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "and nothing of the other is left"


KILLED = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
from tgm_scale.checkpoints import checkpoint
from tgm_scale.checkpoints.saver import Pending
from tgm_scale.runtime.distributed import ProcessInfo

root, rename, made = Path(sys.argv[1]), Path.rename, []

def killed(path, target):
    if len(made) == int(sys.argv[2]):
        os._exit(9)
    made.append(rename(path, target))

Path.rename = killed
pending = Pending(root, checkpoint.Progress(step=30, losses=[1.0]), {}, ProcessInfo(0, 1, 0, torch.device("cpu")))
pending.make_folder()
pending.start({"w.weight": torch.ones(2)})
pending.commit([pending.wait()])
os._exit(9)
"""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_a_checkpoint_takes_anothers_place_leaves_one(tmp_path: Path, renames: int) -> None:
    """Killed before, between and after the two renames, with no other checkpoint: a start has one in any case."""
    root = tmp_path / "checkpoints"
    before = checkpoint.Reader(made(root, 30)).progress
    ended = subprocess.run([sys.executable, "-c", KILLED, str(root), str(renames)], cwd=ROOT, check=False)
    assert ended.returncode == 9
    newest = Resume(tmp_path, HostCollectives(ALONE)).newest
    assert newest is not None
    progress = checkpoint.Reader(newest).progress
    assert progress == before if renames == 0 else progress.losses == [1.0]


@pytest.mark.parametrize(
    "put", [os.mkfifo, lambda path: path.write_bytes(b"x"), lambda path: path.symlink_to(path.name)]
)
def test_what_has_the_name_of_a_checkpoint_gives_way_to_one(tmp_path: Path, put: Callable[[Path], object]) -> None:
    put(folder := folders.folder_of(tmp_path, 3))
    for left_over in (False, True):
        if left_over:
            put(tmp_path / ".writing-step-00000009")
        pending = Pending(tmp_path, checkpoint.Progress(step=3), {}, ALONE)
        assert pending.make_folder() is None
        pending.start({"w.weight": torch.ones(2)})
        assert pending.commit([pending.wait()]) is None
        assert checkpoint.Reader(folder).progress.step == 3
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_state_file_that_is_forbidden_ends_a_start_as_what_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, opened = state_of(made(tmp_path / "checkpoints", 30)), Path.open

    def refused(path: Path, *rest: Any, **more: Any) -> Any:
        if path == state:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **more)

    def missing(path: Path, framework: str) -> None:
        raise FileNotFoundError(
            f"No such file or directory: {path}"
        )  # the library's words for either, without a number

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr("tgm_scale.runtime.tensors.safe_open", missing)
    with pytest.raises(PermissionError, match=state.name) as met:
        Resume(tmp_path, HostCollectives(ALONE))
    assert code_of(met.value) == 2


def test_a_flipped_bit_costs_the_steps_since_the_checkpoint_before(config: Path) -> None:
    folder = config.parent / "run"
    root = folder / "checkpoints"
    run(2, arguments(config, "train.steps=12"))
    whole = {row["step"]: row["loss"] for row in read_metrics(folder)}
    mapped = checkpoint.Reader(folders.folder_of(root, 12)).weights()
    weights = {name: value.clone() for name, value in mapped.items()}
    assert check(str(folder))[1] == 0
    told = checkpoint.Reader(folders.folder_of(root, 10)).progress.losses
    assert told == [whole[step] for step in range(1, 11)], "a spike is judged alike whatever becomes of metrics.jsonl"
    flip(folders.folder_of(root, 12) / "state-00001-of-00002.safetensors")  # which rank 1 compares
    report, code = check(str(folder))
    assert code == 1 and "DAMAGED  step-00000012" in report and report.endswith("resumes from step-00000010")
    done = run(2, arguments(config, "train.steps=12"))
    assert "contents differ" in done.stderr and "resuming from step-00000010" in done.stderr
    assert (root / "damaged-step-00000012" / manifest.NAME).is_file(), "nothing is deleted"
    assert {row["step"]: row["loss"] for row in read_metrics(folder)} == whole
    again = checkpoint.Reader(folders.folder_of(root, 12)).weights()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert "damaged-step-00000012 at a start from step 10" in status(str(folder))
    for step in folders.steps_in(root):
        flip(state_of(folders.folder_of(root, step)))
    report, code = check(str(folder))
    assert code == 2 and "cannot be resumed" in report
    done = run(1, arguments(config, "train.steps=12"), code=2)
    assert "every checkpoint is damaged" in done.stderr and "Traceback" not in done.stderr
    assert len(list(root.glob("step-*"))) == len(folders.steps_in(root)) > 1, "none was renamed"


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("of a library"), OSError(28, "No space left")])
def test_a_writer_of_checkpoints_that_dies_is_an_error_of_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tgm_scale.checkpoints.saver.save_tensors", fail)
    pending = Pending(tmp_path, checkpoint.Progress(step=3), {}, ALONE)
    assert pending.make_folder() is None
    pending.start({"w.weight": torch.ones(2)})
    entry = pending.wait()
    assert pending.ended() and re.search("no space left|no room|of a library", entry["error"])


def test_hashes_that_cannot_be_compared_set_nothing_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "checkpoints"
    made(root, 3)

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(checkpoint, "digest", fail)
    with pytest.raises(MemoryError):
        Resume(tmp_path, HostCollectives(ALONE)).restore(None)
    assert (root / "step-00000003").is_dir()
