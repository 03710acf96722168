"""What a study plans: its commands, what fits into a budget, and mistakes by their key. Nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale import cli
from tgm_scale import config as configuration
from tgm_scale.config import StudyConfig
from tgm_scale.study import records
from tgm_scale.study.arms import units
from tgm_scale.study.launching import budget
from tgm_scale.study.records import Times

CONFIGS = Path(__file__).parents[2] / "configs" / "study"


def load(file: Path, *overrides: str) -> StudyConfig:
    return configuration.checked(configuration.read_tree(file, overrides), str(file), StudyConfig, overrides)


def test_every_arm_and_seed_is_pretrained_and_evaluated_by_commands(file: Path, tmp_path: Path) -> None:
    found = units(load(file, f"run.dir={tmp_path}", "study.untrained=true"))
    names = ["untrained", "tube+pixels", "tube+contrast", "tube+broken"]
    assert [(unit.arm.name, unit.seed) for unit in found] == [(name, seed) for seed in (0, 1) for name in names]
    untrained, pixels = found[0], found[1]
    assert [job.what for job in untrained.jobs] == ["knn"] and [job.what for job in pixels.jobs] == ["pretrain", "knn"]
    assert "encoder.checkpoint=random" in untrained.jobs[0].arguments
    assert {"encoder.size=tiny", "encoder.frames=8", "data.stride=1"} <= set(untrained.jobs[0].arguments)
    run, knn = pixels.jobs
    assert run.arguments[:3] == ("pretrain", "--config", "debug") and "run.seed=0" in run.arguments
    assert f"encoder.checkpoint={tmp_path}/tube+pixels/seed-0/pretrain" in knn.arguments
    assert knn.folder == tmp_path / "tube+pixels" / "seed-0" / "knn"


def test_a_retrieval_is_of_arms_with_captions(file: Path, tmp_path: Path) -> None:
    given = "study.evaluations.retrieve={command: retrieve, set: [data.test=x]}"
    found = units(load(file, f"run.dir={tmp_path}", given, "study.untrained=true", "study.seeds=[0]"))
    assert [unit.arm.name for unit in found if unit.jobs[-1].what == "retrieve"] == ["tube+contrast"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.objectives.pixels=[objective.termz=1]", "study.objectives.pixels: .*objective.termz: unknown key"),
        ("study.objectives.pixels=['objective.terms={pixls: 1}']", "study.objectives.pixels: objective.terms.pixls"),
        ("study.maskers.tube=[masking.recipe=tub]", "study.maskers.tube, study.objectives.pixels: .*tub"),
        ("study.set=[run.dir=x]", "study.set: found 'run.dir=x', which the study sets"),
        ("study.evaluations.knn.set=[encoder.checkpoint=x]", "study.evaluations.knn.set: .*which the study sets"),
        ("study.evaluations.knn.set=[neighbours.k=0]", "study.evaluations.knn: "),
        ("study.evaluations.knn.set=[data]", "study.evaluations.knn.set: found 'data': wanted section.key=value"),
        ("study.evaluations.f={command: finetune}", "study.evaluations.f.config: missing"),
        ("study.evaluations.knn.command=knm", "study.evaluations.knn.command: found 'knm'"),
        ("study.maskers={a/b: []}", "study.maskers: found the name 'a/b'"),
        ("study.seeds=[1, 1]", "study.seeds=.1, 1.: a seed is given twice"),
        ("study.seeds=[]", "study.seeds: found"),
        ("study.hours=0", "study.hours: found 0"),
        ("study.hour=1", "study.hour: unknown key.*study.hours"),
    ],
)
def test_a_mistake_is_named_by_its_key(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        units(load(file, override))


def test_a_mistake_ends_the_command_with_its_code(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("study.set=[train.stepz=1]", "study.maskers={}", "--task=2"):
        assert cli.main(["study", "--config", str(file), "--dry-run", given]) == 2
        assert capsys.readouterr().err.startswith("tgm-scale study: ")


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


def test_a_dry_run_prints_arms_and_commands(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"run.dir={tmp_path}/new"]
    assert cli.main(["study", "--config", str(file), "--dry-run", *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "3 arms: tube+pixels, tube+contrast, tube+broken",
        "6 runs of 12 commands, 0 of them done",
        "time: known when the first run has ended",
    ]
    assert len([line for line in lines if line.startswith("tgm-scale ")]) == 12 and not (tmp_path / "new").exists()
    assert cli.main(["study", "--config", str(file), "--dry-run", "--task=1", "--tasks=4", *given]) == 0
    assert "2 runs of 4 commands" in capsys.readouterr().out


def test_a_budget_leaves_out_what_would_end_too_late_and_says_it(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of 100 s and an evaluation of 20 s have ended, and another run was stopped after 30 s."""
    config = load(file, f"run.dir={tmp_path}")
    found = units(config)
    assert budget(found, Times(found), 1, 50.0).left_out == [], "what is not known is begun"
    for job, seconds in zip(found[0].jobs, (100.0, 20.0)):
        job.folder.mkdir(parents=True)
        records.write(job, records.DONE, seconds)
    stopped = found[1].jobs[0]
    stopped.folder.mkdir(parents=True)
    records.write(stopped, records.STOPPED, 10.0)
    records.write(stopped, records.STOPPED, 20.0)
    left = [unit for unit in found if not all(map(records.is_done, unit.jobs))]
    whole = budget(left, Times(found), 1, None)
    assert whole.seconds == 90 + 4 * 120 and whole.begun == left
    assert budget(left, Times(found), 2, None).seconds == 90 + 120 + 120  # 90 + 240 beside 240
    half = budget(left, Times(found), 1, 300.0)
    assert half.begun == left[:2] and half.left_out == left[2:] and half.seconds == 210
    given = [f"run.dir={tmp_path}", "study.parallel=1", "study.hours=0.084"]
    assert cli.main(["study", "--config", str(file), "--dry-run", *given]) == 0
    said = capsys.readouterr().out
    assert "time: about 3:30, by the commands that have ended" in said
    assert "left out, since study.hours is too little: tube+pixels seed 1, tube+contrast seed 1" in said


def test_a_record_of_another_configuration_is_none(file: Path, tmp_path: Path) -> None:
    job = units(load(file, f"run.dir={tmp_path}"))[0].jobs[0]
    job.folder.mkdir(parents=True)
    records.write(job, records.DONE, 1.0)
    assert records.is_done(job)
    longer = units(load(file, f"run.dir={tmp_path}", "study.set=[data.shards=x, train.steps=13]"))[0].jobs[0]
    assert longer.folder == job.folder and not records.is_done(longer)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_study_loads_and_its_header_says_command_and_time(path: Path) -> None:
    assert units(load(path))
    head = path.read_text().partition("run:")[0]
    assert f"tgm-scale study --config configs/study/{path.name}" in head and "Time:" in head
