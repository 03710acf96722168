"""Files of a run folder beside its checkpoints, damaged: named, taken from a copy, or a line less."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_damage import made

from tgm_scale.config import load, to_yaml
from tgm_scale.runs import events, run_data, run_folder
from tgm_scale.runs.check_run import check
from tgm_scale.runs.faults import FaultState
from tgm_scale.runs.metrics import Metrics, read_metrics, recent_losses, rows_and_damaged
from tgm_scale.runs.status import status
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.runtime.files import describe_os_error
from tgm_scale.runtime.tensors import save_tensors

BAD_LINES = [b'{"step": 4, "lo', b"\0\0\0", b'{"step": 4}{"step": 5}', b"\xff\xfe", b"{}", b"5", b'{"step": "4"}']
BAD_LINES += [b'{"step": 4, "loss": "much"}', b"[" * 100_000, b'{"step": true, "loss": 1}', b""]


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_damaged_line_costs_itself(tmp_path: Path, bad: bytes, capsys: pytest.CaptureFixture) -> None:
    rows = [json.dumps({"step": step, "loss": 1.0}).encode() for step in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*rows[:3], bad, *rows[4:]]) + b"\n")
    kept = [1, 2, 3, 5, 6, 7, 8]
    assert [row["step"] for row in read_metrics(tmp_path)] == kept and rows_and_damaged(tmp_path)[1] == 1
    assert recent_losses(tmp_path, 6) == [1.0] * 5
    Metrics(tmp_path, 7, tensorboard=False).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == kept[:-1]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == bad + b"\n" and rows_and_damaged(tmp_path)[1] == 1
    assert "1 damaged line" in capsys.readouterr().err
    assert events.read(tmp_path)[0]["event"] == "lines_damaged"


def test_a_figure_that_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0, tensorboard=False)
    metrics.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "update_refused": False})
    metrics.write({"step": 2, "loss": 2.0, "grad_norm": 1.0, "update_refused": False})
    metrics.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    first = read_metrics(tmp_path)[0]
    assert first["loss"] is None and first["grad_norm"] is None and first["not_finite"] == ["loss", "grad_norm"]
    assert recent_losses(tmp_path, 2) == [2.0]


@pytest.mark.parametrize("content", ["", "[]", '{"rollbacks": "1"}', '{"rollback": 1}', '{"skip_list": 5}'])
def test_a_damaged_list_of_faults_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "faults.json").write_text(content)
    with pytest.raises(ValueError, match=r"faults\.json: damaged"):
        FaultState.load(tmp_path)[0]


LIST = FaultState(rollbacks=2, skip_list=["0/a", "0/b"])


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda file: file.write_text(file.read_text().replace("0/a", "0/c")),
        lambda file: file.write_text("{"),
        lambda file: file.rename(file.with_name("faults.json.old")),
    ],
)
def test_the_list_of_faults_has_a_copy(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """Nothing else says which samples a rollback left out: without it the run would come to other weights."""
    FaultState(rollbacks=1, skip_list=["0/a"]).write(tmp_path)
    LIST.write(tmp_path)
    assert FaultState.load(tmp_path) == (LIST, "")
    damage(tmp_path / "faults.json")
    found, said = FaultState.load(tmp_path)
    assert found == LIST and "faults.json: damaged" in said and "events.jsonl" in said
    (tmp_path / "config.yaml").write_text("run: {dir: here}\n")
    report, code = check(str(tmp_path))
    assert "DAMAGED  faults.json" in report and code == 1


def test_a_list_of_faults_without_a_copy_is_taken_as_it_is(tmp_path: Path) -> None:
    """As earlier versions and people write it; the copy alone may be damaged, too."""
    (tmp_path / "faults.json").write_text('{"rollbacks": 2, "skip_list": ["0/a", "0/b"]}')
    (tmp_path / "events.jsonl").write_text('{"event": "rolled_back", "state": {"rollbacks": "x"}}\n[\n')
    assert FaultState.load(tmp_path) == (LIST, "")
    (tmp_path / "faults.json").unlink()
    with pytest.raises(ValueError, match=r"faults\.json: damaged \(missing\)"):
        FaultState.load(tmp_path)


def started(config: Path, corpora: list[dict]) -> Path:
    """A run folder as a start leaves it."""
    settings = load(str(config))
    folder = run_folder.open_folder(settings)
    run_folder.write_start(folder, settings, corpora, {"steps": 1, "world_size": 1}, 0)
    return folder


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")], ids=range(3))
@pytest.mark.parametrize("name", ["metrics.jsonl", "skipped.jsonl", "environment.jsonl", "config.yaml", "owner"])
def test_what_has_the_name_of_a_runs_file_is_refused(config: Path, name: str, put: Callable[[Path], object]) -> None:
    """Nothing waits at a pipe, and nothing is written where a link leads."""
    settings = load(str(config))
    folder = run_folder.open_folder(settings)
    if name == "owner" and put is os.mkdir:
        return
    (folder / "checkpoints").mkdir()
    put(folder / name)
    with pytest.raises(ValueError, match=f"{name}: something else has the name"):
        run_folder.open_folder(settings)
    report, code = check(str(folder))
    assert f"DAMAGED  {name}: something else" in report and code == 2


def test_check_names_what_is_not_as_a_start_wrote_it(config: Path) -> None:
    folder = started(config, [{"name": "a", "samples": 4, "fingerprint": "f"}])
    assert check(str(folder))[1] == 0
    for name in ("config.yaml", "data.json", "origins.json", "plan.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text(whole + " ")
        report, code = check(str(folder))
        assert f"DAMAGED  {name}: not as the last start wrote it" in report and code == 1
        assert f"ok       {name}:" not in report, "one file is one or the other"
        (folder / name).write_text(whole)


@pytest.mark.parametrize("name", [".", "owner", "ranks", "checkpoints", "environment.jsonl", "metrics.jsonl"])
def test_check_tries_to_write_what_a_start_writes(config: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = started(config, [])
    for each in ("owner", "ranks", "checkpoints"):
        (folder / each).mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    before = sorted((str(path), path.stat().st_size) for path in folder.rglob("*"))
    assert check(str(folder))[1] == 0
    assert sorted((str(path), path.stat().st_size) for path in folder.rglob("*")) == before, "nothing is changed"
    opened, touched = Path.open, Path.touch

    def refused(path: Path) -> None:
        if folder / name in ((path.parent, path) if path.name.startswith(".probe") else (path,)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def open_(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode != "r" and "r" not in mode:
            refused(path)
        return opened(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(Path, "touch", lambda path: refused(path) or touched(path))  # type: ignore[func-returns-value]
    report, code = check(str(folder))
    assert code == 2 and f"DAMAGED  {name}: cannot be written by this user (Permission denied)" in report


def test_check_of_an_evaluation_says_what_it_would_do(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("encoder: {checkpoint: x}\n")
    assert (
        "an evaluation: started again it evaluates again (features are made); no results yet"
        in check(str(tmp_path))[0]
    )
    (tmp_path / "features").mkdir()
    (tmp_path / "results.json").write_text("{}")
    assert "are used again); results.json" in check(str(tmp_path))[0]


def test_why_an_evaluation_failed_is_said_until_it_has_results(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("encoder: {checkpoint: x}\n")
    assert "state" not in status(str(tmp_path))
    events.append(tmp_path, run_folder.FAILED, why="no room", starts=0)
    assert "state  failed: no room" in status(str(tmp_path))
    (tmp_path / "results.json").write_text('{"method": "knn", "figures": {"top-1": {"value": 0.5}}, "left_out": {}}')
    assert "state" not in status(str(tmp_path)) and "top-1 0.5000" in status(str(tmp_path))
    (tmp_path / "results.json").write_text('{"method": "knn", "figures": {"top-1": {"value": 7.5}}, "left_out": {}}')
    with pytest.raises(ValueError, match=r"results\.json: damaged: top-1: found 7\.5, wanted a number from 0 to 1"):
        status(str(tmp_path))


def test_why_a_start_failed_is_kept_until_the_next(config: Path) -> None:
    folder = started(config, [])
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert "work: failed" not in status(str(folder))
    with (
        pytest.raises(OSError, match="no room"),
        run_folder.owned(folder, HostCollectives(ProcessInfo(0, 1, 0, torch.device("cpu")))),
    ):
        raise OSError("no room\nfor https://me:secret@host/x")
    said = status(str(folder))
    assert re.search(r"not running: failed 0:00:0\d ago: no room for https://\*\*\*@host/x", said)
    assert "earlier  failed: no room" in check(str(folder))[0]
    run_folder.write_start(folder, load(str(config)), [], {"steps": 1, "world_size": 1}, 0)
    assert "no room" not in status(str(folder)) + check(str(folder))[0]


def test_a_run_that_saved_nothing_may_be_removed(config: Path) -> None:
    corpora = [{"name": "a", "samples": 3, "fingerprint": "f"}]
    folder = started(config, corpora)
    kept = [(name, "train.init_from starts from these weights") for name in ("damaged-step-00000002", "step-00000002")]
    for saved, words in [("", "has saved nothing yet, remove its folder"), *kept]:
        if saved:
            (folder / f"checkpoints/{saved}").mkdir(parents=True)
        with pytest.raises(ValueError, match=words):
            run_data.refuse_other(folder, [{**corpora[0], "samples": 2}])


def test_other_data_is_refused_by_the_names_of_its_shards(config: Path) -> None:
    before = {"name": "a", "samples": 9, "fingerprint": "f", "shards": {"0": "m 4", "1": "n 4", "2": "o 1"}}
    after = before | {"fingerprint": "g", "shards": {"0": "m 4", "1": "x 4", "3": "o 1"}}
    started(config, [before])
    with pytest.raises(ValueError, match=r"data\.json.*lacking: 2\.tar; changed: 1\.tar; new: 3\.tar"):
        started(config, [after])


@pytest.mark.parametrize("change", [{"samples": "4"}, {"fingerprint": True}, {"name": None}, {"shards": [1]}])
def test_damaged_facts_of_the_data_are_named(config: Path, change: dict) -> None:
    whole = {"name": "a", "samples": 4, "fingerprint": "f"}
    folder = started(config, [whole])
    (folder / "data.json").write_text(json.dumps([whole | change]))
    with pytest.raises(ValueError, match=rf"data\.json: damaged: 0\.{next(iter(change))}.*restore it"):
        started(config, [whole])


@pytest.mark.parametrize("name", ["config.yaml", "data.json", "plan.json", "faults.json", "origins.json"])
def test_check_names_a_damaged_file(tmp_path: Path, name: str) -> None:
    made(tmp_path / "checkpoints", 20)
    (tmp_path / "config.yaml").write_text("run: {dir: here}\n")
    assert check(str(tmp_path))[1] == 0
    (tmp_path / name).write_bytes(b"\xff[")
    report, code = check(str(tmp_path))
    assert f"DAMAGED  {name}" in report and code == (1 if name == "plan.json" else 2)


def test_a_figure_names_the_room_on_a_full_disk(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert re.fullmatch(
        rf"no space left in {tmp_path}: [\d,]+ bytes free, 5,000 bytes wanted", describe_os_error(full, tmp_path, 5000)
    )
    with pytest.raises(OSError, match="x"):
        save_tensors({"a": torch.ones(2)}, tmp_path / "nowhere" / "x")


def noted(folder: Path) -> Path:
    """A run folder before its first step, as far as status reads it."""
    (folder / "config.yaml").write_text(to_yaml(load("debug", [f"run.dir={folder}"]).model_dump(mode="json")))
    (folder / "plan.json").write_text('{"steps": 4, "world_size": 1}')
    (folder / "environment.jsonl").write_text('{"step": 0, "slurm_job": null}\n')
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("plan.json", text) for text in ("{}", '{"steps": 0, "world_size": 1}', "[]", '{"steps": "4"}', "{")),
        *(("environment.jsonl", text) for text in ("[]", "{", '{"step": "0"}', '{"step": 0, "slurm_job": 5}')),
        *(("config.yaml", text) for text in ("run: {dir: r1}", "[]", "model: 5", "a: [", "encoder:", "encoder: {}")),
        ("config.yaml", "run: {dir: 5}\nmodel: {}\ntrain: {}\ndata: {}\nmasking: null"),
    ],
)
def test_status_names_a_damaged_file(tmp_path: Path, name: str, content: str) -> None:
    assert "0 of 4 (0%)" in status(str(noted(tmp_path)))
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        status(str(tmp_path))
    if name != "config.yaml":
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=f"{name}: missing|did not come to its first step"):
            status(str(tmp_path))


@pytest.mark.parametrize("change", [{"step_seconds": None}, {"step_seconds": 0}, {"samples": None}])
def test_status_leaves_out_what_a_damaged_row_says(tmp_path: Path, change: dict) -> None:
    row = {"step": 2, "loss": 1.0, "step_seconds": 1.0, "data_seconds": 0.5, "guidance_seconds": 0.0}
    row |= {"samples": 8, "skipped_samples": 0}
    for values, said in ((row, True), (row | change, False), ({"step": 2, "loss": 1.0}, False)):
        (noted(tmp_path) / "metrics.jsonl").write_text(json.dumps(values) + "\n")
        report = status(str(tmp_path))
        assert "2 of 4 (50%)" in report and ("clips/s" in report) == said
    (tmp_path / "environment.jsonl").write_text('{"step": 0}\n{"step": 2, "slurm_job": "7"}\n')
    assert "jobs 7" in status(str(tmp_path))
