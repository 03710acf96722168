"""`tgm-scale check`: what of a run folder is damaged or missing, and what a start would do about it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from made_checkpoint import edited, made

from tgm_scale.checkpoints import beside, checkpoint, manifest
from tgm_scale.checkpoints.ema import Average
from tgm_scale.models.vit import SIZES
from tgm_scale.objectives.term import CoupledTerm, TermSettings
from tgm_scale.objectives.terms import TERMS, Objective
from tgm_scale.runs.check_run import check
from tgm_scale.runtime.tensors import save_tensors


def test_whoever_may_read_a_run_may_read_what_lies_beside_its_checkpoints(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "plain").touch()
    beside.write(tmp_path, "ema", 20, [], {"weight": torch.ones(10)})
    assert beside.file_of(tmp_path, "ema", 20).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_check_says_once_what_is_damaged(tmp_path: Path) -> None:
    made(tmp_path / "checkpoints", 20)
    (tmp_path / "config.yaml").write_text("run: {dir: here}\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 3, "loss": 1.0}\n')
    (tmp_path / "environment.jsonl").write_text('{"step": 0}\n{\n')
    (tmp_path / "results-knn.json").write_text("{")
    report, code = check(str(tmp_path))
    assert code == 1 and "ok       metrics.jsonl" not in report
    assert all(f"DAMAGED  {name}" in report for name in ("metrics.jsonl", "environment.jsonl", "results-knn.json"))


@pytest.mark.parametrize(
    ("name", "config"), [("terms", {"objective": {"terms": {"nearest": 0.5}}}), ("ema", {"finetune": {"ema": 0.9}})]
)
def test_check_names_what_lacks_beside_a_checkpoint(tmp_path: Path, name: str, config: dict) -> None:
    """A start from the newest needs its file, and would refuse; an older one's is only damage."""
    (tmp_path / "config.yaml").write_text("run: {dir: here}\n")
    for step in (20, 30):
        edited(made(tmp_path / "checkpoints", step), lambda tree: tree.update(config=config))
        beside.write(tmp_path, name, step, [20], {"queue": torch.ones(1000)})
    older, newest = (beside.file_of(tmp_path, name, step) for step in (20, 30))

    def said() -> tuple[list[str], int]:
        report, code = check(str(tmp_path))
        return [line for line in report.splitlines() if f" {name}-" in line], code

    good = [f"ok       {file.name}: whole, belongs to step-{file.stem[-8:]}" for file in (older, newest)]
    assert said() == (good, 0)
    older.write_bytes(older.read_bytes()[:-1] + b"\1")
    [first, second], code = said()
    assert code == 1 and "damaged: its tensors differ from their hash" in first and second == good[1]
    older.write_bytes(older.read_bytes()[:-10])
    [first, second], code = said()
    assert code == 1 and first.startswith(f"DAMAGED  {older.name}: ") and second == good[1]
    newest.unlink()
    lines, code = said()
    assert code == 2 and lines[1] == f"DAMAGED  {newest.name}: missing: it belongs to step-00000030"


def test_what_is_damaged_beside_a_checkpoint_is_refused_with_what_to_do(tmp_path: Path) -> None:
    tensors = {"queue": torch.ones(300, 1000), "seen": torch.tensor(3), "half": torch.ones(3, dtype=torch.bfloat16)}
    beside.write(tmp_path, "terms", 30, [], tensors)
    file = beside.file_of(tmp_path, "terms", 30)
    assert all(value.equal(tensors[name]) for name, value in beside.read(file).items())
    save_tensors(tensors, file)  # of an earlier version: no hash
    assert beside.read(file).keys() == tensors.keys()
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="checkpoint of step 30: restore it, or move that checkpoint away"):
        beside.read(file)


@pytest.mark.parametrize("wrong", [{"queue": torch.full((4, 8), math.nan)}, {"seen": torch.tensor([-1])},
                                   {"queue": torch.zeros(4, 8).double()}, {"queue": torch.zeros(4, 9)}])  # fmt: skip
def test_a_queue_that_cannot_be_is_refused(wrong: dict[str, torch.Tensor]) -> None:
    term = TERMS["nearest"](TermSettings(SIZES["tiny"], text=8, queue=4))
    assert isinstance(term, CoupledTerm)
    term.restore(term.state())
    with pytest.raises(ValueError, match=r"wanted a queue of \[4, 8\] and the count of captions seen"):
        term.restore(term.state() | wrong)


def test_an_average_of_another_model_is_refused(tmp_path: Path) -> None:
    Average(lambda: [("weight", torch.ones(3))], 0.9, tmp_path).write(20, [])
    with pytest.raises(ValueError, match="weights of another model"):
        Average(lambda: [("other", torch.ones(3))], 0.9, tmp_path).read(20)


def test_the_terms_that_keep_something_are_listed() -> None:
    built = Objective.of(dict.fromkeys(TERMS, 1.0), TermSettings(SIZES["tiny"], features=8, text=8, queue=4))
    assert {name for name, term in built.coupled.items() if term.state()} == beside.KEEPING


@pytest.mark.parametrize(("rows", "lacking"), [(0, "[1, 2, 3, 4, 5]"), (18, "[19, 20]"), (20, ""), (22, "")])
def test_check_knows_which_rows_of_metrics_are_gone(tmp_path: Path, rows: int, lacking: str) -> None:
    """A checkpoint of step 20 was written after its row."""
    made(tmp_path / "checkpoints", 20)
    (tmp_path / "config.yaml").write_text("run: {dir: here}\n")
    lines = (f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, rows + 1))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    report, code = check(str(tmp_path))
    assert code == (1 if lacking else 0), report
    assert (f"lacking: {lacking}" if lacking else f"ok       metrics.jsonl: {rows} steps") in report


def test_check_refuses_where_a_start_does(tmp_path: Path) -> None:
    """The newest checkpoint is of a later version: no start goes back to the one before."""
    (tmp_path / "config.yaml").write_text("run: {dir: here}\n")
    made(tmp_path / "checkpoints", 20)
    newest = made(tmp_path / "checkpoints", 30)
    assert check(str(tmp_path))[0].endswith("resumes from step-00000030")
    edited(newest, lambda tree: tree.update(format=2))
    report, code = check(str(tmp_path))
    assert code == 2 and "newer    step-00000030: " in report and "DAMAGED  step" not in report
    assert "resume with the version that wrote it" in report and "cannot be resumed as it is" in report
    with pytest.raises(manifest.NewerFormat):
        checkpoint.newest_whole(tmp_path / "checkpoints", {})


@pytest.mark.parametrize("stated", [[], ["a.weight"], ["a.weight", "a.exp_avg", "b.weight"]])
def test_a_manifest_that_names_other_tensors_is_damage(tmp_path: Path, stated: list[str]) -> None:
    (tmp_path / "config.yaml").write_text("run: {dir: here}\n")
    folder = made(tmp_path / "checkpoints", 20)
    edited(folder, lambda tree: tree["files"][0].update(tensors=["a.exp_avg", "a.weight"]))
    assert check(str(tmp_path))[1] == 0
    edited(folder, lambda tree: tree["files"][0].update(tensors=stated))
    report, code = check(str(tmp_path))
    assert code == 2 and "not the tensors that the manifest names: " in report


def test_check_says_that_metrics_are_missing(tmp_path: Path) -> None:
    made(tmp_path / "checkpoints", 20)
    (tmp_path / "config.yaml").write_text("run: {dir: here}\n")
    report, code = check(str(tmp_path))
    assert code == 0 and "missing  metrics.jsonl: the rows up to step 20" in report
