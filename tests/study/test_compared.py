"""Arms compared: differences and intervals by the plain formula, and the page."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from PIL import Image

from tgm_scale import cli
from tgm_scale import config as configuration
from tgm_scale.config import StudyConfig
from tgm_scale.study import page, records
from tgm_scale.study.arms import Arm, Unit, units
from tgm_scale.study.differences import difference, effects, interval
from tgm_scale.study.outcomes import Outcome
from tgm_scale.study.summary import effect_rows, summarise, tables

MASKERS = "{tube: [], random: [masking.recipe=random, masking.mask_ratio=0.7]}"
ONE, OTHER = Arm("tube", "contrast"), Arm("tube", "pixels")
MASKS = ("tube", "random")


def outcomes(seeds: int, clips: int, groups: int = 0) -> dict[tuple[Arm, int], Outcome]:
    """Two arms that are right in a third and in a half of the clips, by chance; in every clip of a group alike."""
    found = {}
    for seed in range(seeds):
        for arm, share in ((ONE, 1 / 2), (OTHER, 1 / 3)):
            generator = torch.Generator().manual_seed(seed + 100 * (arm == ONE))
            right = torch.rand(groups or clips, generator=generator) < share
            of = {f"clip{i}": bool(right[i % len(right)]) for i in range(clips)}
            named = {clip: f"group{i % groups}" for i, clip in enumerate(of)} if groups else {}
            found[arm, seed] = Outcome({"top1": sum(of.values()) / clips}, of, named, {}, {}, [])
    return found


def test_a_difference_of_one_seed_is_the_plain_mean_with_the_width_of_the_normal_interval() -> None:
    found = outcomes(1, 600)
    gain = [found[ONE, 0].right[clip] - found[OTHER, 0].right[clip] for clip in found[ONE, 0].right]
    mean = sum(gain) / 600
    half = 1.96 * math.sqrt(sum((one - mean) ** 2 for one in gain) / 599 / 600)
    of = difference(found, [(ONE, OTHER)], seed=0)
    assert of["mean"] == pytest.approx(mean) and of["clips"] == 600 and of["seeds"] == [0]
    assert of["low"] == pytest.approx(mean - half, abs=0.15 * half)
    assert of["high"] == pytest.approx(mean + half, abs=0.15 * half)
    assert "over groups" not in of


def test_over_groups_the_width_is_that_of_the_groups() -> None:
    """Clips of a group are alike, so that 40 groups of 15 clips say as much as 40 clips."""
    found = outcomes(1, 600, groups=40)
    gain = [found[ONE, 0].right[f"clip{i}"] - found[OTHER, 0].right[f"clip{i}"] for i in range(40)]
    mean = sum(gain) / 40
    half = 1.96 * math.sqrt(sum((one - mean) ** 2 for one in gain) / 39 / 40)
    of = difference(found, [(ONE, OTHER)], seed=0)
    over = of["over groups"]
    assert over["groups"] == 40 and over["mean"] == pytest.approx(of["mean"]) == pytest.approx(mean)
    assert over["high"] - over["low"] == pytest.approx(2 * half, rel=0.15)
    assert of["high"] - of["low"] < 0.4 * (over["high"] - over["low"]), "over clips it looks narrower than it is"


def test_a_difference_is_of_the_seeds_and_clips_that_both_have() -> None:
    found = outcomes(3, 90)
    del found[OTHER, 1]
    short = found[ONE, 2]
    found[ONE, 2] = short._replace(right={clip: right for clip, right in short.right.items() if clip != "clip0"})
    of = difference(found, [(ONE, OTHER)], seed=0)
    assert of["seeds"] == [0, 2] and of["clips"] == 89
    mean = sum(
        found[ONE, s].right[f"clip{i}"] - found[OTHER, s].right[f"clip{i}"] for s in (0, 2) for i in range(1, 90)
    )
    assert of["mean"] == pytest.approx(mean / 178)
    assert interval(of).endswith("] (of seed 0, 2 alone and 89 of 90 test clips)")
    assert difference(dict(reversed(found.items())), [(ONE, OTHER)], seed=0) == of, "whatever was measured first"
    assert "(of" not in interval(difference(outcomes(2, 90), [(ONE, OTHER)], seed=0))
    assert difference({key: one for key, one in found.items() if key[0] == ONE}, [(ONE, OTHER)], seed=0) == {}


def test_an_objective_and_a_masker_as_a_whole_are_the_mean_of_their_differences(
    evaluated: tuple[StudyConfig, list[Unit]],
) -> None:
    config, found = evaluated
    evaluation = summarise(config, found, [])["evaluations"]["knn"]
    arms = {name: of["figures"]["top1"]["of each"] for name, of in evaluation["arms"].items() if of["seeds"]}
    assert {len(each) for each in arms.values()} == {2}
    effect = {(of["of"], of["in place of"]): of for of in evaluation["effects"]}
    assert set(effect) == {("contrast", "pixels"), ("random", "tube")}, "broken runs have no figure"
    contrast, random = effect["contrast", "pixels"], effect["random", "tube"]
    assert contrast["over"] == ["tube", "random"]
    assert random["over"] == ["pixels", "contrast"]

    def more(one: str, other: str) -> float:
        return fmean(arms[one]) - fmean(arms[other])

    by_hand = more("tube+contrast", "tube+pixels"), more("random+contrast", "random+pixels")
    assert contrast["mean"] == pytest.approx(fmean(by_hand)) and contrast["low"] < contrast["mean"] < contrast["high"]
    by_hand = more("random+pixels", "tube+pixels"), more("random+contrast", "tube+contrast")
    assert random["mean"] == pytest.approx(fmean(by_hand))
    summary = summarise(config, found, [])
    line = f"| contrast | pixels | 2: tube, random | {interval(contrast)} |"
    assert line in tables(summary) and "2: pixels, contrast" in page.page(config, found, summary)


def test_the_interval_of_a_whole_is_that_of_its_mean() -> None:
    """Noise of the arms is averaged clip by clip, so that over more pairs the interval becomes narrower."""
    one, more = outcomes(1, 600), outcomes(1, 600)
    found = {(arm, 0): more[arm, 0] for arm in (ONE, OTHER)}
    other = {Arm("random", arm.objective): of for (arm, _), of in outcomes(8, 600).items() if _ == 7}
    found |= {(arm, 0): of for arm, of in other.items()}
    alone = difference(one, [(ONE, OTHER)], seed=0)
    both = difference(found, [(ONE, OTHER), (Arm("random", "contrast"), Arm("random", "pixels"))], seed=0)
    gain = [
        fmean(found[Arm(m, "contrast"), 0].right[clip] - found[Arm(m, "pixels"), 0].right[clip] for m in MASKS)
        for clip in found[ONE, 0].right
    ]
    assert both["mean"] == pytest.approx(fmean(gain))
    half = 1.96 * stdev(gain) / math.sqrt(600)
    assert both["high"] - both["low"] == pytest.approx(2 * half, rel=0.15)
    assert both["high"] - both["low"] < 0.85 * (alone["high"] - alone["low"])


def test_a_whole_of_runs_that_share_no_seed_says_so(file: Path) -> None:
    given = [f"study.maskers={MASKERS}"]
    config = configuration.checked(configuration.read_tree(file, given), str(file), StudyConfig, given)
    arms = [Arm(masker, objective) for masker in MASKS for objective in ("pixels", "contrast")]
    of = outcomes(1, 90)[ONE, 0]
    (found, *_) = effects(config, {(arm, int(arm.masker == "random")): of for arm in arms})
    assert found == {"of": "contrast", "in place of": "pixels", "over": ["tube", "random"]}
    assert effect_rows({"effects": [found]})[1][-1] == interval(found) == "none: no seed and test clip that all have"


@pytest.fixture
def evaluated(file: Path, tmp_path: Path) -> tuple[StudyConfig, list[Unit]]:
    """A study of which all evaluations lie there, but those of the arm that failed and of a seed without time."""
    given = [f"run.dir={tmp_path}", f"study.maskers={MASKERS}"]
    config = configuration.checked(configuration.read_tree(file, given), str(file), StudyConfig, given)
    found = units(config)
    for number, unit in enumerate(found[:-1]):
        failed = unit.arm.objective == "broken"
        for job in unit.jobs[: 1 if failed else 2]:
            job.folder.mkdir(parents=True)
            records.write(job, records.FAILED if failed else records.DONE, 10.0, "exit code 4: <b>diverged" * failed)
        if not failed:
            right = [(clip * 7 + number) % 3 == 0 for clip in range(40)]
            rows = [{"key": f"{clip}", "label": "a", "prediction": "ba"[one]} for clip, one in enumerate(right)]
            figures = {"top1": {"value": sum(right) / 40}, "top5": {"value": 1.0}}
            folder = unit.jobs[1].folder
            (folder / "results.json").write_text(json.dumps({"method": "nearest neighbours", "figures": figures}))
            (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config, found


class Fetching(HTMLParser):
    """Whatever a page would ask for by an attribute, and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.elements: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.fetched += [f"{tag} {value}" for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_the_table_and_the_page_name_what_failed_and_what_was_left_out(
    evaluated: tuple[StudyConfig, list[Unit]],
) -> None:
    config, found = evaluated
    summary = summarise(config, found, found[-1:])
    arms = summary["evaluations"]["knn"]["arms"]
    assert arms["random+broken"]["missing"] == {
        "0": "pretrain: exit code 4: <b>diverged", "1": "left out: no time",
    }  # fmt: skip
    differences = arms["random+contrast"]["differences"]
    assert {named: of["from"] for named, of in differences.items()} == {
        "objective pixels": "random+pixels", "masker tube": "tube+contrast",
    }  # fmt: skip
    of = arms["random+contrast"]["figures"]["top1"]
    beside = arms["random+pixels"]["figures"]["top1"]
    assert differences["objective pixels"]["mean"] == pytest.approx(of["mean"] - beside["mean"])
    assert of["deviation"] == pytest.approx(abs(of["of each"][0] - of["of each"][1]) / math.sqrt(2))
    said = tables(summary)
    assert "| tube+broken | none | seed 0: pretrain: exit code 4: <b>diverged |" in said
    assert "difference from objective pixels, 95 % | difference from masker tube, 95 %" in said
    written = page.page(config, found, summary)
    parsed = Fetching()
    parsed.feed(written)
    assert parsed.fetched == [] and "url(" not in written and "@import" not in written
    assert {"script", "link", "iframe", "b"} & set(parsed.elements) == {"b"} & set(parsed.elements)
    assert "&lt;b&gt;diverged" in written and parsed.elements.count("circle") == 8


def test_below_the_table_stands_how_much_it_is_of(evaluated: tuple[StudyConfig, list[Unit]]) -> None:
    config, found = evaluated
    (found[0].jobs[1].folder / "results.json").unlink()
    summary = summarise(config, found, [])
    said = "seeds: 1 to 2; test clips: 40; one seed: an interval is over clips alone, and another may differ"
    assert summary["evaluations"]["knn"]["basis"] == said
    assert tables(summary).endswith(f"|\n\n{said}\n") and f"{said}<" in page.page(config, found, summary)


@pytest.mark.parametrize(
    ("seeds", "clips", "groups", "said"),
    [
        (4, 30, 0, "seeds: 4; test clips: 30"),
        (
            *(3, 24, 4),
            "seeds: 3; test clips: 24 of 4 groups; few test clips: 24, fewer than 30: one clip moves top1 by 0.0417, "
            "and an interval over so few is rough; few seeds: 3: an interval over so few is rough, and somewhat too "
            "narrow; few groups: 4, fewer than 10: an interval over so few is too narrow (over 4 groups, one of 95 % "
            "covers about 80 %)",
        ),
    ],
)
def test_a_caution_is_of_few_seeds_and_few_clips(
    file: Path, tmp_path: Path, seeds: int, clips: int, groups: int, said: str
) -> None:
    rows = [{"key": f"{i}", "label": "a", "prediction": "a"} for i in range(clips)]
    rows = [row | {"group": f"{i % groups}"} for i, row in enumerate(rows)] if groups else rows
    given = [f"run.dir={tmp_path}", f"study.seeds={list(range(seeds))}", f"study.maskers={MASKERS}"]
    given += ["study.objectives={pixels: ['objective.terms={pixels: 1}']}"]
    given += ["study.set=['data.shards=https://me:passw0rd@host/a.tar?X-Amz-Signature=5ec2e7']"]
    config = configuration.checked(configuration.read_tree(file, given), str(file), StudyConfig, given)
    found = units(config)
    for job in (unit.jobs[1] for unit in found):
        job.folder.mkdir(parents=True)
        records.write(job, records.DONE, 1.0)
        figures = {"top1": {"value": 1.0}}
        (job.folder / "results.json").write_text(json.dumps({"method": "nearest neighbours", "figures": figures}))
        (job.folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = summarise(config, found, [])
    assert summary["evaluations"]["knn"]["basis"] == said
    written = page.page(config, found, summary)
    assert "host/a.tar" in written and "passw0rd" not in written and "5ec2e7" not in written


def test_what_a_command_said_of_its_data_stands_below_its_table(evaluated: tuple[StudyConfig, list[Unit]]) -> None:
    config, found = evaluated
    shared, note = (
        "6 of 40 test clips are training clips, too: a",
        "3 of 40 test clips have a class that training lacks",
    )
    files = [file for unit in found for job in unit.jobs[1:] if (file := job.folder / "results.json").exists()]
    for at, file in enumerate(files):
        tree = json.loads(file.read_text())
        file.write_text(json.dumps(tree | {"in both parts": shared} | ({"facts": {"note": note}} if at == 0 else {})))
    summary = summarise(config, found, [])
    first = f"{files[0].parent.parent.parent.name}, {files[0].parent.parent.name.replace('-', ' ')}"
    of_one = f"{note} (1 of {len(files)} runs, such as {first})"
    assert sorted(summary["evaluations"]["knn"]["cautions"]) == [of_one, shared]
    assert f"\n\nwarning: {shared}\n" in tables(summary)
    assert f"warning: {shared}<" in page.page(config, found, summary)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("7.5", "top1: found 7.5, wanted a number from 0 to 1"),
        ("-0.1", "top1: found -0.1, wanted a number from 0 to 1"),
        ("1e999", "top1: found inf, wanted a number from 0 to 1"),
        ("NaN", "top1: found nan, wanted a number from 0 to 1"),
        ("true", "top1: found True, wanted a number from 0 to 1"),
        ('"abc"', "top1: found 'abc', wanted a number from 0 to 1"),
        ("0.5", "top1 is 0.5, and 0.35 of 40 predictions are right"),
    ],
)
def test_a_figure_that_cannot_be_is_named_and_the_other_arms_are_shown(
    evaluated: tuple[StudyConfig, list[Unit]], value: str, why: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, found = evaluated
    given = ["study", "--config", str(file), "--tables", f"run.dir={config.run.dir}", f"study.maskers={MASKERS}"]
    job = found[0].jobs[1]
    results = job.folder / "results.json"
    results.write_text(results.read_text().replace('"top1": {"value": 0.35}', f'"top1": {{"value": {value}}}'))
    summary = summarise(config, found, [])
    arms = summary["evaluations"]["knn"]["arms"]
    assert arms["tube+pixels"]["seeds"] == [1] and arms["random+pixels"]["seeds"] == [0, 1]
    assert summary["damaged"] == [arms["tube+pixels"]["missing"]["0"]] and f"({why})" in summary["damaged"][0]
    for folder in Path(config.run.dir).glob("*/*/pretrain"):  # the only failure that is left is the damage
        failed = json.loads((folder / records.FILE).read_text()) | {"state": records.DONE}
        (folder / records.FILE).write_text(json.dumps(failed))
    assert cli.main(given) == 1
    said = capsys.readouterr().out
    assert f"seed 0: {results} or predictions.jsonl is damaged ({why})" in said and "| random+pixels | 0." in said
    assert (Path(config.run.dir) / "report.html").is_file()
    results.unlink()
    assert cli.main(given) == 0


def test_a_prediction_that_is_no_text_is_damage(evaluated: tuple[StudyConfig, list[Unit]]) -> None:
    config, found = evaluated
    rows = found[0].jobs[1].folder / "predictions.jsonl"
    lines = [json.loads(line) | {"group": ["a"]} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "a line of predictions.jsonl holds what is no text" in summarise(config, found, [])["damaged"][0]


def test_arms_that_were_tested_on_other_data_are_named_and_not_compared(
    evaluated: tuple[StudyConfig, list[Unit]], file: Path
) -> None:
    """Lists that were corrected between two calls of a study: of each pair the last call's is shown."""
    config, found = evaluated
    jobs = {(unit.arm.name, unit.seed): unit.jobs[1] for unit in found}
    corrected, changed, newer = (jobs[of] for of in (("tube+pixels", 0), ("tube+contrast", 0), ("random+contrast", 1)))
    rows = corrected.folder / "predictions.jsonl"
    rows.write_text(rows.read_text().replace('"label": "a", "prediction": "b"', '"label": "c", "prediction": "b"', 1))
    for job, train in ((changed, "1"), (newer, "2")):
        results = job.folder / "results.json"
        data = [{"part": "train", "content": train}, {"part": "test", "content": "3"}]
        results.write_text(json.dumps(json.loads(results.read_text()) | {"data": data}))
    summary = summarise(config, found, [])
    arms = summary["evaluations"]["knn"]["arms"]
    missing = {f"{name}-{seed}": why for name in arms for seed, why in arms[name]["missing"].items() if "data" in why}
    remedy = "remove {0}, and the same study measures again"
    assert missing == {
        "tube+pixels-0": f"{corrected.folder} was measured on other data than {newer.folder}: 1 test clips had "
        f"another label, such as 1: 'c' there, 'a' now: {remedy.format(corrected.folder)}",
        "tube+contrast-0": f"{changed.folder} was measured on other data than {newer.folder}: the clips, labels or "
        f"groups of data.train were others: {remedy.format(changed.folder)}",
    }
    assert sorted(summary["damaged"]) == sorted(missing.values())
    assert arms["tube+contrast"]["differences"]["objective pixels"]["seeds"] == [1]
    assert tables(summary).count("and the same study measures again") == 2
    given = [f"run.dir={config.run.dir}", f"study.maskers={MASKERS}"]
    given.append("study.evaluations.knn.set=[data.train=x, data.test=y, data.share=0.5]")
    drawn = configuration.checked(configuration.read_tree(file, given), str(file), StudyConfig, given)
    for job in (job for unit in units(drawn) for job in unit.jobs if (job.folder / "results.json").is_file()):
        records.write(job, records.DONE, 1.0)
    arms = summarise(drawn, units(drawn), [])["evaluations"]["knn"]["arms"]
    assert arms["tube+contrast"]["seeds"] == [0, 1], "a share of the labels is drawn anew by each seed"


@pytest.mark.parametrize("change", [{"seconds": "long"}, {"seconds": float("inf")}, {"why": None}])
def test_a_damaged_record_is_none(evaluated: tuple[StudyConfig, list[Unit]], change: dict) -> None:
    config, found = evaluated
    file = found[0].jobs[1].folder / records.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert summarise(config, found, [])["evaluations"]["knn"]["arms"]["tube+pixels"]["missing"]["0"] == "not done yet"


def test_what_was_found_is_drawn_against_the_cost_and_over_the_labels(
    evaluated: tuple[StudyConfig, list[Unit]], file: Path, tmp_path: Path
) -> None:
    def drawn(folder: Path, name: str = "cost.png", *more: str) -> subprocess.CompletedProcess[str]:
        given = [f"run.dir={folder}", f"study.maskers={MASKERS}", *more, "--output", str(tmp_path / name)]
        against = Path(name).stem
        command = [sys.executable, "tools/draw_study.py", "--against", against, "--config", str(file), *given]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])

    nothing = drawn(tmp_path / "elsewhere")
    assert nothing.returncode == 2 and "no arm of the study has been evaluated there: run it first" in nothing.stderr
    other = drawn(tmp_path, "cost.jpg")
    assert other.returncode == 2 and "cost.jpg: a PNG is drawn: name it .png" in other.stderr
    one = drawn(tmp_path, "labels.png")
    assert one.returncode == 2 and "no two evaluations differ in data.share" in one.stderr
    assert drawn(tmp_path).returncode == 0
    _, found = evaluated
    for unit in found:
        if (folder := unit.jobs[1].folder).is_dir():
            for name in ("knn_50", "knn_60"):
                shutil.copytree(folder, folder.parent / name)
    knn = "command: knn, set: [data.train=x, data.test=y, data.label=truth.objects.0.shape, data.workers=0"
    both = f"study.evaluations={{knn: {{{knn}]}}, knn_50: {{{knn}, data.share=0.5]}}}}"
    same = both.replace("}}", f"}}, knn_60: {{{knn}, data.share=0.5]}}}}")
    alike = both.replace(", data.share=0.5", "")
    for given, said in ((alike, "no two evaluations differ"), (same, "knn, knn_50, knn_60 two have the"), (both, "")):
        overrides = [f"run.dir={tmp_path}", f"study.maskers={MASKERS}", given]
        study = configuration.checked(configuration.read_tree(file, overrides), str(file), StudyConfig, overrides)
        for job in (job for unit in units(study) for job in unit.jobs if (job.folder / "results.json").is_file()):
            records.write(job, records.DONE, 1.0)
        done = drawn(tmp_path, "labels.png", given)
        assert done.returncode == (2 if said else 0) and said in done.stderr, done.stderr
    for name in ("cost.png", "labels.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 100, "lines, bars and letters"
