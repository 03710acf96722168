"""`tgm-scale status` and `compare` on any kind of run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from made_checkpoint import made

from tgm_scale import cli
from tgm_scale.runs.check_run import check
from tgm_scale.runs.compare import compare
from tgm_scale.runs.metrics import rows_and_damaged
from tgm_scale.runs.status import status


def evaluation(folder: Path, top1: float, **sections: dict) -> str:
    folder.mkdir()
    tree = {"run": {"dir": str(folder)}, "encoder": {"checkpoint": "runs/x"}, **sections}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    found = {"method": "linear probe", "figures": {"top1": {"value": top1}}, "left_out": {"missing_video": 2}}
    (folder / "results.json").write_text(json.dumps(found))
    (folder / "results-nearest-neighbours.json").write_text(json.dumps({**found, "method": "nearest neighbours"}))
    return str(folder)


def trained(folder: Path, **sections: dict) -> str:
    folder.mkdir()
    tree = {
        "run": {"dir": str(folder)},
        "data": {"workers": 0},
        "model": {"size": "tiny"},
        "train": {"global_batch_size": 8},
        **sections,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    row = {"step": 1, "loss": 2.5, "step_seconds": 1.0, "data_seconds": 0.5, "guidance_seconds": 0.0, "samples": 4,
           "skipped_samples": 0, "data_digest": "0"}  # fmt: skip
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "plan.json").write_text(json.dumps({"steps": 1, "world_size": 1}))
    (folder / "environment.jsonl").write_text(json.dumps({"step": 0, "slurm_job": None, "slurm_nodes": None}) + "\n")
    (folder / "data.json").write_text(json.dumps([{"name": "k400", "left_out": {"missing_video": 7}}]))
    return str(folder)


def test_the_checkpoint_is_the_one_that_a_start_would_take(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trained(folder)
    assert "checkpoint  none yet" in status(str(folder))
    whole = made(folder / "checkpoints", 8)
    assert "checkpoint  step-00000008\n" in status(str(folder))
    copy = shutil.copytree(whole, whole.with_name("step-00000030"))
    assert "checkpoint  step-00000008; step-00000030 is damaged, see tgm-scale check\n" in status(str(folder))
    assert "resumes from step-00000008" in check(str(folder))[0]
    (whole / "manifest.json").write_text("{")
    assert "checkpoint  none that is whole; step-00000030 is damaged" in status(str(folder))
    (copy / "manifest.json").write_text('{"format": 99}')
    assert "checkpoint  step-00000030\n" in status(str(folder)), "a start refuses it, and takes none before it"


def test_an_evaluation_has_a_status(tmp_path: Path) -> None:
    said = status(evaluation(tmp_path / "a", 0.5))
    assert "frozen features of runs/x" in said
    assert "linear probe  top1 0.5000; left out: 2 missing_video" in said and "nearest neighbours  top1" in said


def test_a_folder_that_is_no_run_is_told_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"runs/ldok: no such folder; wanted a run folder, such as runs/debug"):
        status(str(tmp_path / "runs/ldok"))
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "failed", "starts": 0, "why": "no shards"}) + "\n")
    with pytest.raises(ValueError, match=r"no config.yaml: its start failed: no shards"):
        status(str(tmp_path))
    (tmp_path / "events.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no config.yaml: not a run folder"):
        status(str(tmp_path))
    (tmp_path / "owner").mkdir()
    with pytest.raises(ValueError, match=r"no config.yaml: a start in it is being prepared, or was ended before"):
        status(str(tmp_path))


@pytest.mark.parametrize("command", ["status", "report", "check", "compare"])
def test_the_folder_of_a_study_is_told_as_such(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "tube+pixels/seed-0/pretrain"
    begun.mkdir(parents=True)
    (begun / "output.log").touch()
    assert cli.main([command, *[str(tmp_path)] * (1 + (command == "compare"))]) == 2
    said = capsys.readouterr().err
    assert f"a study, not of a run: tgm-scale study --config FILE run.dir={tmp_path} --tables shows it" in said
    assert f"its runs are {tmp_path}/ARM/seed-N/pretrain" in said


@pytest.mark.parametrize("name", ["environment.jsonl", "data.json", "plan.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    run = trained(tmp_path / "f", finetune={"mixup": 0.8})
    (tmp_path / "f" / name).write_bytes(b'{"step": \xff')
    with pytest.raises(ValueError, match=rf"f/{name}: .*damaged"):
        status(run)


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '{"figures": {"top1": 7}}', "[" * 100_000, '[{"samples": 3}]', "[7]"]
)
@pytest.mark.parametrize("name", ["data.json", "results.json"])
def test_a_file_of_another_form_is_named(tmp_path: Path, name: str, text: str) -> None:
    run = trained(tmp_path / "a") if name == "data.json" else evaluation(tmp_path / "a", 0.5)
    (Path(run) / name).write_text(text)
    if (name, text) == ("data.json", "[]"):
        assert status(run)
        return
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        status(run)


def test_a_finetuning_has_a_status_with_what_was_left_out(tmp_path: Path) -> None:
    said = status(trained(tmp_path / "f", finetune={"mixup": 0.8}))
    assert "tiny, finetuning" in said and "left out  k400: 7 missing_video, see left_out.jsonl" in said
    data = tmp_path / "f" / "data.json"
    [corpus] = json.loads(data.read_text())
    data.write_text(json.dumps([{**corpus, "part": part} for part in ("train", "test")]))
    assert "k400 (train): 7 missing_video; k400 (test): 7 missing_video" in status(str(tmp_path / "f"))


def test_a_notice_is_not_called_left_out(tmp_path: Path) -> None:
    run = trained(tmp_path / "f", finetune={"mixup": 0.8})
    data = Path(run) / "data.json"
    [corpus] = json.loads(data.read_text())
    data.write_text(json.dumps([{**corpus, "left_out": {"missing_video": 7, "duplicate_row": 2}}]))
    lines = status(run).splitlines()
    assert any("left out  k400: 7 missing_video, see left_out.jsonl" in line for line in lines)
    assert any(line.split() == ["noted", "k400:", "2", "duplicate_row,", "see", "left_out.jsonl"] for line in lines)
    data.write_text(json.dumps([{**corpus, "left_out": {"duplicate_row": 2}}]))
    assert "left out " not in status(run)


@pytest.mark.parametrize("value", [None, True, 7, ["0"]])
def test_a_row_whose_digest_is_no_text_is_damaged(tmp_path: Path, value: object) -> None:
    one, other = trained(tmp_path / "a"), trained(tmp_path / "b")
    file = Path(other) / "metrics.jsonl"
    row = json.loads(file.read_text())
    file.write_text(json.dumps(row | {"data_digest": value}) + "\n")
    with pytest.raises(ValueError, match="have no step in common"):
        compare(one, other)
    file.write_text(file.read_text() + json.dumps(row | {"step": 1}) + "\n")
    assert compare(one, other)[1] and rows_and_damaged(Path(other))[1] == 1


def test_runs_of_other_kinds_and_keys_are_compared_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = trained(tmp_path / "a", masking={"recipe": "tube"}), trained(tmp_path / "b", finetune={"mixup": 0.8})
    assert cli.main(["compare", one, other]) == 0
    said = capsys.readouterr().out
    assert "config: masking.recipe is 'tube' in the first, not there in the second" in said
    assert "config: finetune.mixup is not there in the first, 0.8 in the second" in said
    report, equal = compare(evaluation(tmp_path / "c", 0.5), evaluation(tmp_path / "d", 0.6, data={"split": 2}))
    assert not equal and "data.split is not there in the first, 2 in the second" in report
    assert "linear probe: top1 0.5000; left out: 2 missing_video | top1 0.6000" in report
