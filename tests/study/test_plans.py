"""What a study plans: its commands, what fits into a budget, and mistakes by their key. Nothing is started."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tgm_scale import cli
from tgm_scale import config as configuration
from tgm_scale.config import Config, StudyConfig
from tgm_scale.evaluation.settings import FrozenConfig
from tgm_scale.runs import run_folder
from tgm_scale.runtime.ownership import owned, this_start
from tgm_scale.study import records
from tgm_scale.study.arms import Job, units
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
        ("study.parallel=1000000000000", "study.parallel: found 1000000000000; .* less than or equal to 4096"),
        (
            "study.objectives.broken=[masking.recipe=tube, 'objective.terms={pixels: 1}']",
            r"tube\+pixels and tube\+broken train one configuration.*an objective's are laid over a masker's",
        ),
        ("study.maskers={a: [log.every=2], b: [log.every=3]}", r"a\+pixels and b\+pixels train one configuration"),
    ],
)
def test_a_mistake_is_named_by_its_key(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        units(load(file, override))


def test_a_mistake_ends_the_command_with_its_code(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("study.set=[train.stepz=1]", "study.maskers={}", "--task=2"):
        assert cli.main(["study", "--config", str(file), "--dry-run", given]) == 2
        assert capsys.readouterr().err.startswith("tgm-scale study: ")


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
    nowhere = "study.evaluations.knn.set=[data.train=nowhere, data.test=nowhere]"
    assert cli.main(["study", "--config", str(file), "--dry-run", nowhere, *given]) == 0
    refused = (
        "warning: as things are, its start would be refused: study.evaluations.knn: data.train=nowhere: no such file"
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith(refused)
    own = ["study", "--config", "configs/study/savings.yaml", f"run.dir={tmp_path}/new"]
    absent = f"study.set=[data.shards={tmp_path}/absent, train.steps=1]"
    assert cli.main([*own, absent, "--dry-run"]) == 0
    said = f"data.shards={tmp_path}/absent: no such file or folder; wanted"
    where = "; the first lines of configs/study/savings.yaml say what it needs"
    last = capsys.readouterr().out.splitlines()[-1]
    assert said in last and last.endswith(where)
    assert cli.main([*own, absent]) == 2
    assert where in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["study", "--config", str(file), "--dry-run", "--tables"])


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
        for name in records.FIGURES:
            (job.folder / name).touch()
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


def test_a_study_is_the_same_wherever_its_folder_lies(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the records of before, which have the path of the pretraining as it was given."""
    monkeypatch.chdir(tmp_path)
    of = "study.seeds=[0]"
    for unit in units(load(file, "run.dir=runs/first", of)):
        for job in unit.jobs:
            ended(job)
    Path("runs/first").rename("moved")
    Path("linked").symlink_to("moved")
    for folder in (tmp_path / "moved", "linked", "runs/../moved", "moved"):
        found = units(load(file, f"run.dir={folder}", of))
        assert all(records.is_done(job) for unit in found for job in unit.jobs), folder
        records.refuse_other_runs(found)
    knn = found[0].jobs[1]
    record = json.loads((knn.folder / records.FILE).read_text())
    for arm, same in ((knn.arm.name, True), ("other+pixels", False)):
        record["config"]["own"]["encoder"]["checkpoint"] = f"/gone/{arm}/seed-0/pretrain"
        (knn.folder / records.FILE).write_text(json.dumps(record))
        assert records.is_done(knn) == same


def test_records_of_before_have_values_of_the_encoder_that_were_not_set(file: Path, tmp_path: Path) -> None:
    of = [f"run.dir={tmp_path}", "study.seeds=[0]"]
    knn = units(load(file, *of))[0].jobs[1]
    ended(knn)
    record = json.loads((knn.folder / records.FILE).read_text())
    before = {"size": "B", "initialisation": "videomae", "frames": 16, "image_size": 224}
    for more, same in ({}, True), ({"frames": 8}, False):
        written = copy.deepcopy(record)
        written["config"]["own"]["encoder"] |= before | more
        (knn.folder / records.FILE).write_text(json.dumps(written))
        assert records.is_done(knn) == same


def begun(job: Job) -> None:
    """With the configuration that a start of it writes, and no record of an end."""
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text(run_folder.to_yaml(job.config))


def test_runs_of_other_values_are_refused_before_anything_is_begun(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [f"run.dir={tmp_path}", "study.seeds=[0]"]
    set_of = "study.set=[data.shards={shards}, train.steps={steps}, log.every={every}]"
    given = [*base, set_of.format(shards=file.parent / "shards", steps=12, every=1)]
    units_of = units(load(file, *given))
    for unit in units_of[:2]:  # the third arm is not begun
        begun(unit.jobs[0])
    begun(units_of[0].jobs[1])
    records.refuse_other_runs(units_of)
    (tmp_path / "summary.json").write_text("kept")

    def refused(*others: str) -> str:
        assert cli.main(["study", "--config", str(file), *base, *others]) == 2
        assert (tmp_path / "summary.json").read_text() == "kept" and not (tmp_path / "calls").exists()
        return capsys.readouterr().err

    longer = set_of.format(shards=file.parent / "shards", steps=13, every=1)
    for mode in ([], ["--tables"], ["--dry-run"], ["--tasks=6", "--task=5"]):
        said = refused(longer, *mode)
        assert f"train.steps: 12 there, 13 here ({tmp_path}/tube+pixels/seed-0/pretrain and 1 more)" in said
        assert "give the study another run.dir, or the values and the run.dir of before, or the masker" in said
    knn = "[data.train=x, data.test=y, data.workers=0, data.label=z, neighbours.k=7]"
    said = refused(given[-1], f"study.evaluations.knn.set={knn}")
    assert f"neighbours.k: 5 there, 7 here ({tmp_path}/tube+pixels/seed-0/knn)" in said

    same = [*base, set_of.format(shards="elsewhere", steps=12, every=7), "study.seeds=[0, 1]"]
    more = "study.maskers={tube: [masking.recipe=tube], random: [masking.recipe=random, masking.mask_ratio=0.7]}"
    records.refuse_other_runs(units(load(file, *same, more)))  # places and logs may change, arms and seeds be added
    for job in units_of[0].jobs:
        ended(job)
    said = refused(given[-1], "study.evaluations.knn.command=probe")
    assert f"study.evaluations.knn.command: 'knn' there, 'probe' here ({tmp_path}/tube+pixels/seed-0/knn)" in said
    older = json.loads((units_of[0].jobs[1].folder / records.FILE).read_text())
    del older["command"]
    (units_of[0].jobs[1].folder / records.FILE).write_text(json.dumps(older))
    assert records.is_done(units_of[0].jobs[1])
    assert cli.main(["study", "--config", str(file), *given, "--tables"]) == 1  # its figures are made up
    assert (tmp_path / "summary.json").read_text() != "kept"


def ended(job: Job) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    records.write(job, records.DONE, 1.0)
    for name in () if job.what == "pretrain" else records.FIGURES:
        (job.folder / name).write_text('{"method": "knn"}')


@pytest.mark.parametrize("change", ["study.set=[data.shards=x, train.steps=13]", "study.set=[data.shards=elsewhere]"])
def test_an_evaluation_is_not_done_for_another_pretraining_of_its_folder(
    file: Path, tmp_path: Path, change: str
) -> None:
    """Of which it has nothing but the path."""
    base = [f"run.dir={tmp_path}", "study.seeds=[0]"]
    first = units(load(file, *base))[0]
    for job in first.jobs:
        ended(job)
    assert all(map(records.is_done, first.jobs))
    other = units(load(file, *base, change))[0]
    assert [job.folder for job in other.jobs] == [job.folder for job in first.jobs]
    assert not any(map(records.is_done, other.jobs))


def test_figures_that_are_gone_are_measured_again_and_damaged_ones_named(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"run.dir={tmp_path}", "study.seeds=[0]"]
    found = units(load(file, *given))
    for unit in found:
        for job in unit.jobs:
            ended(job)
    gone = found[0].jobs[1]
    (gone.folder / "results.json").unlink()
    assert not records.is_done(gone) and records.is_done(found[1].jobs[1])
    assert cli.main(["study", "--config", str(file), "--tables", *given]) == 1
    said = capsys.readouterr().out
    assert "tube+pixels | none | seed 0: not done yet" in said
    damaged = found[1].jobs[1].folder / "results.json"
    assert f"{damaged} or predictions.jsonl is damaged (wanted figures by name" in said
    (found[1].jobs[0].folder / "config.yaml").touch()
    assert cli.main(["study", "--config", str(file), *given, "--tasks", "2", "--task", "1"]) == 1  # its own are done
    said = capsys.readouterr().out
    assert f"{damaged} or predictions.jsonl is damaged" in said and "part 1 of 2 is done" in said


def test_evaluations_without_their_pretraining_are_not_taken_for_those_of_a_new_one(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"run.dir={tmp_path}", "study.seeds=[0]"]
    unit = units(load(file, *given))[0]
    for job in unit.jobs:
        ended(job)
    assert cli.main(["study", "--config", str(file), *given]) == 2
    folder = tmp_path / "tube+pixels" / "seed-0"
    assert f"{folder}: holds knn, and no run in pretrain: restore it, or move {folder} away" in capsys.readouterr().err
    (unit.jobs[0].folder / "config.yaml").touch()
    records.refuse_strays(unit)


@pytest.mark.parametrize("name", ["a #b", "a: b", "2024", "null", "[a", "'a", "1e3", "a b", 'a\\n"b'])
def test_the_folder_of_a_run_is_within_the_study_whatever_its_name(file: Path, name: str) -> None:
    found = units(load(file, f"run.dir={json.dumps(name)}", "study.seeds=[0]", "study.untrained=true"))
    for job in (job for unit in found for job in unit.jobs):
        assert job.folder == Path(name) / job.arm.name / "seed-0" / job.what
        if job.origin is not None:
            assert isinstance(job.config, FrozenConfig) and job.config.encoder.checkpoint == job.origin.run.dir
            assert Path(job.origin.run.dir) == job.folder.parent / "pretrain"


def test_the_untrained_weights_are_measured_on_the_clips_that_an_evaluation_has(file: Path) -> None:
    own = ["encoder.frames=4", "encoder.image_size=64", "data.stride=3", "data.train=x", "data.test=y"]
    given = f"study.evaluations.knn.set={json.dumps(own)}"
    job = units(load(file, given, "study.untrained=true"))[0].jobs[0]
    assert isinstance(job.config, FrozenConfig) and job.arm.name == "untrained"
    assert (job.config.encoder.frames, job.config.encoder.image_size, job.config.data.stride) == (4, 64, 3)
    by_default = units(load(file, "study.untrained=true"))
    pretrained, job = by_default[1].jobs[0].config, by_default[0].jobs[0]
    assert isinstance(pretrained, Config) and isinstance(job.config, FrozenConfig)
    assert job.config.encoder.frames == pretrained.data.frames
    assert job.config.encoder.image_size == pretrained.data.size and job.config.data.stride == pretrained.data.stride
    for here, wanted in ((None, True), ("false", False)):
        own = ["data.train=x", "data.test=y", *([f"data.standardise={here}"] if here else [])]
        given = ["study.set=[data.standardise=true]", f"study.evaluations.knn.set={json.dumps(own)}"]
        job = units(load(file, *given, "study.untrained=true"))[0].jobs[0]
        assert isinstance(job.config, FrozenConfig) and job.config.data.standardise == wanted


def test_arms_that_start_from_other_weights_are_not_compared_with_the_untrained(file: Path, tmp_path: Path) -> None:
    for arm, said in (
        ("study.maskers.tube=[masking.recipe=tube, model.size=S]", "tube.pixels has model.size=S, and"),
        ("study.objectives.pixels=[model.initialisation=local]", "tube.pixels has model.initialisation=local, and"),
    ):
        with pytest.raises(ValueError, match=f"study.untrained=true: {said}"):
            units(load(file, arm, "study.untrained=true"))
        units(load(file, arm))
    base = configuration.load("debug")
    own = base.model_copy(update={"train": base.train.model_copy(update={"init_from": "runs/x"})})
    (tmp_path / "own.yaml").write_text(configuration.dump(own))
    with pytest.raises(ValueError, match=r"study\.config has train\.init_from=runs/x"):
        units(load(file, f"study.config={tmp_path / 'own.yaml'}", "study.untrained=true"))


def test_a_study_that_runs_is_not_begun_twice(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["study.objectives={pixels: ['objective.terms={pixels: 1}']}", f"run.dir={tmp_path}"]
    with owned(tmp_path / "calls" / "0-of-1"):
        assert cli.main(["study", "--config", str(file), *given]) == 2
        assert "in use by another start" in capsys.readouterr().err
        assert cli.main(["study", "--config", str(file), "--tables", *given]) == 0
    assert not list(tmp_path.glob("*/seed-*"))


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ("calls/1-of-2", "--tasks 1: a call with --task 1 --tasks 2 runs ("),
        ("tube+pixels/seed-1/pretrain", "still runs ({who}): end it, which saves a checkpoint, or wait"),
    ],
)
def test_what_an_earlier_call_left_running_is_not_begun_again(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], taken: str, said: str
) -> None:
    """Another division of the same runs; and a command whose study was killed."""
    given = ["study.objectives={pixels: ['objective.terms={pixels: 1}']}", f"run.dir={tmp_path}"]
    with owned(tmp_path / taken):
        assert cli.main(["study", "--config", str(file), *given]) == 2
        assert said.format(who=this_start()) in capsys.readouterr().err
    assert not list(tmp_path.glob("*/seed-*/*/output.log")), "nothing was begun"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_study_loads_and_its_header_says_command_and_time(path: Path) -> None:
    assert units(load(path))
    head = path.read_text().partition("run:")[0]
    assert f"tgm-scale study --config configs/study/{path.name}" in head and "Time:" in head
