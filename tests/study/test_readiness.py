"""Data that an evaluation of a study cannot use is told before anything starts, and by a dry run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tgm_scale import cli
from tgm_scale import config as configuration
from tgm_scale.config import StudyConfig
from tgm_scale.study import records
from tgm_scale.study.arms import Job, units

PIXELS = "study.objectives={pixels: ['objective.terms={pixels: 1}']}"


def test_what_an_evaluation_reads_is_looked_for_before_anything_starts(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["study.evaluations.knn.set=[data.train=nowhere, data.test=nowhere]", f"run.dir={tmp_path}/new"]
    assert (
        cli.main(
            ["study", "--config", str(file), "study.objectives={pixels: ['objective.terms={pixels: 1}']}", *given]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert said == "tgm-scale study: study.evaluations.knn: data.train=nowhere: no such file or folder\n"
    assert not (tmp_path / "new").exists()


def test_clips_that_an_evaluation_takes_otherwise_are_told_once(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the study's own output: each command's is in its log, hours later."""
    tree = yaml.safe_load(file.read_text())["study"]
    pretrained = ", ".join([*tree["set"], "data.sampling=segments", "data.standardise=true"])
    read = ", ".join(tree["evaluations"]["knn"]["set"])
    far = "[data.sampling=dense, data.stride=3, data.standardise=false]"
    arms = f"study.maskers={{tube: [masking.recipe=tube], far: {far}}}"
    command = ["study", "--config", str(file), "--dry-run", PIXELS, f"run.dir={tmp_path}/new", arms]
    changes = [
        f"study.set=[{pretrained}]",
        f"study.evaluations.knn.set=[{read}, data.standardise=false, data.stride=1]",
    ]
    assert cli.main([*command, *changes]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: study.evaluations.knn")]
    assert told == [
        "warning: study.evaluations.knn of tube+pixels: trained before on frames of whole clips, and here they are 1 "
        "apart: data.sampling=segments takes them as there",
        "warning: study.evaluations.knn of tube+pixels: trained before with data.standardise=true, and here with "
        "false; data.standardise=true is as before",
        "warning: study.evaluations.knn of far+pixels: trained before on frames 3 apart, and here on data.stride=1; "
        "data.stride=3 is as before",
    ]
    same = f"study.evaluations.knn.set=[{read}, data.sampling=segments]"  # standardised as its checkpoint is
    assert cli.main([*command, changes[0], same]) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_list_that_an_evaluation_cannot_use_is_told_before_anything_starts(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after the hours of its pretraining."""
    (tmp_path / "few.csv").write_text("file,label\na.mp4,x\nb.mp4,y\n")
    (tmp_path / "unlabelled.csv").write_text("file,note\na.mp4,x\n")
    (tmp_path / "a.mp4").touch()
    objective = "study.objectives={pixels: ['objective.terms={pixels: 1}']}"
    for name, wanted in (("few", "50.0% of the samples were left out"), ("unlabelled", "none is a label")):
        given = f"study.evaluations.knn.set=[data.train={tmp_path}/{name}.csv, data.test={tmp_path}/{name}.csv]"
        assert cli.main(["study", "--config", str(file), objective, given, f"run.dir={tmp_path}/new"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("tgm-scale study: study.evaluations.knn: ") and wanted in said, said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "labels", "more", "wanted"),
    [
        ("probe", "x" * 12, "", "a probe needs 2 classes and 10 training clips: found 1 and 12"),
        ("probe", "xy", "", "a probe needs 2 classes and 10 training clips: found 2 and 2"),
        ("knn", "vw", "", "no class of the test ('x', 'y') is one of the training ('v', 'w')"),
        ("knn", "xy", ", data.classes=nowhere.txt", "data.classes=nowhere.txt: no such file"),
    ],
)
def test_so_are_labels_that_an_evaluation_cannot_use(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, labels: str, more: str, wanted: str
) -> None:
    for name, of in (("train", labels), ("test", "xy")):
        rows = [f"{number}.mp4,{label}" for number, label in enumerate(of)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["file,label", *rows]))
    for number in range(12):
        (tmp_path / f"{number}.mp4").touch()
    objective = "study.objectives={pixels: ['objective.terms={pixels: 1}']}"
    keys = f"[data.train={tmp_path}/train.csv, data.test={tmp_path}/test.csv{more}]"
    given = [objective, f"study.evaluations={{own: {{command: {command}, set: {keys}}}}}", f"run.dir={tmp_path}/new"]
    assert cli.main(["study", "--config", str(file), *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tgm-scale study: study.evaluations.own: {wanted}"), said
    assert not (tmp_path / "new").exists()


def dry_run(file: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """What it says against the start."""
    assert cli.main(["study", "--config", str(file), *overrides, "--dry-run"]) == 0
    return capsys.readouterr().out.partition("warning: as things are, its start would be refused: ")[2]


def evaluation(words: str) -> str:
    return f"study.evaluations={{own: {{{words}}}}}"


@pytest.mark.parametrize("place", ["{}", "{}/", "{}/*.tar"])
def test_shards_that_the_start_makes_are_not_missed(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    made, given = tmp_path / "made", place.format(tmp_path / "made")
    motion = f"set: [data.train={given}, data.test={given}, data.label=truth.objects.0.motion]"
    synthetic = f"study.set=[data.shards={made}, data.synthetic.clips=16]"
    assert not dry_run(file, capsys, PIXELS, synthetic, evaluation(f"command: knn, {motion}"))
    other = f"set: [data.train={tmp_path}/other, data.test={given}]"
    assert "no such file or folder" in dry_run(file, capsys, PIXELS, synthetic, evaluation(f"command: knn, {other}"))


def test_captions_and_a_share_that_cannot_be_taken_are_told(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("file,label\na.mp4,x\n")
    (tmp_path / "a.mp4").touch()
    joint = "study.objectives={joint: ['objective.terms={pixels: 1, contrast: 1}']}"
    said = dry_run(file, capsys, joint, evaluation(f"command: retrieve, set: [data.test={tmp_path}/list.csv]"))
    assert said.startswith("study.evaluations.own: ") and "no sample has a caption" in said
    shards = [word for word in configuration.read_tree(file)["study"]["evaluations"]["knn"]["set"] if "data." in word]
    given = ", ".join([*shards, "data.share=0.5"])
    finetune = f"command: finetune, config: configs/finetune_few_clips.yaml, set: [{given}]"
    said = dry_run(file, capsys, PIXELS, evaluation(finetune))
    assert said.startswith("study.evaluations.own: data.share=0.5: a finetuning takes a share of a list"), said


def test_a_pretraining_that_is_gone_is_told(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [PIXELS, f"run.dir={tmp_path}/study"]
    tree = configuration.read_tree(file, given)
    run = units(configuration.checked(tree, str(file), StudyConfig, given))[0].jobs[1]
    run.folder.mkdir(parents=True)
    (run.folder / records.FILE).write_text("{}")
    assert "and no run in pretrain: restore it" in dry_run(file, capsys, *given)
    shutil.rmtree(run.folder)
    assert not dry_run(file, capsys, *given)


def test_an_arm_that_lacks_captions_is_told_before_the_others_are_trained(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{number}.mp4,{'a ball' if number < 2 else ''}" for number in range(4)]
    (tmp_path / "half.csv").write_text("\n".join(["file,caption", *rows]))
    for number in range(4):
        (tmp_path / f"{number}.mp4").touch()
    joint = "joint: ['objective.terms={pixels: 1, contrast: 1}', guidance.towers=small]"
    given = [
        f"study.objectives={{pixels: ['objective.terms={{pixels: 1}}'], {joint}}}",
        f"study.maskers={{random: [masking.recipe=random, data.shards={tmp_path}/half.csv, data.synthetic=null]}}",
        f"run.dir={tmp_path}/new",
    ]
    said = dry_run(file, capsys, *given)
    assert said.startswith(f"random+joint: {tmp_path}/half.csv: 2 of 4 clips without a caption"), said
    assert cli.main(["study", "--config", str(file), *given]) == 2
    assert "random+joint: " in capsys.readouterr().err and not (tmp_path / "new").exists()
    given[0] = f"study.objectives={{{joint.replace('joint', 'begun').replace('contrast: 1', 'contrast: 2')}, {joint}}}"
    saved = tmp_path / "new/random+begun/seed-0/pretrain/checkpoints/step-00000003"
    saved.mkdir(parents=True)
    (saved / "manifest.json").touch()
    said = dry_run(file, capsys, *given)  # a begun run is not judged again, and says nothing of another
    assert said.startswith(f"random+joint: {tmp_path}/half.csv: 2 of 4 clips without a caption"), said


def test_a_study_of_a_version_that_knew_no_whole_clips_is_known_again(file: Path, tmp_path: Path) -> None:
    """Its records lack data.sampling: its windows are today's default."""

    def jobs(*more: str) -> list[Job]:
        given = [PIXELS, f"run.dir={tmp_path}/study", *more]
        tree = configuration.read_tree(file, given)
        return [job for unit in units(configuration.checked(tree, str(file), StudyConfig, given)) for job in unit.jobs]

    for job in jobs():
        job.folder.mkdir(parents=True)
        records.write(job, records.DONE, 1.0)
        found = json.loads((job.folder / records.FILE).read_text())
        for of in found["config"].values():
            if "masking" in of:  # a pretraining's
                assert of["data"].pop("sampling") == "dense"
            of["data"].pop("time_jitter", None)
            of["data"].pop("standardise", None)
        (job.folder / records.FILE).write_text(json.dumps(found))
    assert all(records.read(job) for job in jobs())
    whole = jobs("study.maskers={tube: [masking.recipe=tube, data.sampling=segments]}")
    again = [job for job in whole if job.arm.masker == "tube"]
    assert again and {job.folder for job in again} <= {job.folder for job in jobs()}
    assert not any(records.read(job) for job in again)
    unset, filmed = (
        [job for job in jobs(f"study.evaluations.knn.set=[data.train=x, data.test=y{more}]") if job.what == "knn"]
        for more in ("", ", data.standardise=false")
    )
    for job in unset:  # which reads clips as its pretraining did
        records.write(job, records.DONE, 1.0)
    assert all(records.read(job) for job in unset) and not any(records.read(job) for job in filmed)
