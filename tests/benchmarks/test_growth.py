"""`tgm-scale benchmark growth` on a few points of the tiny model, each a real process."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tgm_scale import cli
from tgm_scale.benchmarks import growth, growth_figure, growth_tables
from tgm_scale.benchmarks.growth import Point
from tgm_scale.benchmarks.growth_start import PARTS
from tgm_scale.runtime.processes import LocalRun


def few(size: str = "tiny") -> list[Point]:
    """Batches of 1 and 8 clips, 2 processes, a checkpoint, a start with a worker and one with a clock at imports."""
    every = growth.points_of(size)
    batches = [point for point in every if point.question == "batch"]
    two = [point for point in every if point.question == "processes" and point.processes == 2]
    written = [point for point in every if point.question == "checkpoint"]
    imports = [point for point in every if point.name == "imports"]
    return [batches[0], batches[-1], *two, written[0], growth.start("workers", size, 1, "warm"), *imports]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("growth")
    return folder, growth.measure(few(), folder)


def test_more_clips_take_longer_and_more_memory(measured: tuple[Path, dict]) -> None:
    _, figures = measured
    one, eight = growth_tables.rows_of(figures["points"], "batch")
    assert (one["clips"], eight["clips"]) == (1, 8) and one["visible_tokens"] == eight["visible_tokens"]
    assert eight["seconds"] > 2 * one["seconds"] > 0 and one["steps"] >= 3
    assert eight["added_MB"] > 2 * one["added_MB"] > 0, "activations are nearly all"
    assert 0.3 < growth_tables.exponent([one, eight], "clips", "seconds") < 1.5
    (two,) = growth_tables.rows_of(figures["points"], "processes")
    assert two["processes"] == 2 and two["parameters"] == one["parameters"] and two["peak_MB"] > 100


def test_checkpoints_and_starts_have_their_parts(measured: tuple[Path, dict]) -> None:
    _, figures = measured
    by_question = {row["question"]: row["figures"] for row in figures["points"]}
    written = by_question["checkpoint"]
    assert written["bytes"] > 12 * written["parameters"] > 1e7
    assert written["write_seconds"] > written["stop_seconds"] > 0 and written["resume_seconds"] > 0
    started = by_question["workers"]
    assert len(started["worker_MB"]) == 1 and started["trainer_MB"] > started["worker_MB"][0] > 5
    for of in ("clock", "cpu"):
        seconds = growth_tables.spans(started[of])
        assert list(seconds) == list(PARTS) and min(seconds.values()) >= 0
        assert 0.5 < sum(seconds.values()) < 300 and seconds["imports"] > 0.1
    imported = by_question["start"]["imports"]
    assert {"torch", "deepspeed", "tgm_scale"} <= imported.keys() and 0.2 < sum(imported.values()) < 300


def test_what_is_there_is_not_measured_again(measured: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, figures = measured
    text = (folder / "growth.json").read_text()
    assert json.loads(text)["points"] == figures["points"] and not list(folder.glob("point-*"))

    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(LocalRun, "__init__", refuse)
    assert growth.measure(few(), folder) == figures and (folder / "growth.json").read_text() == text
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with pytest.raises(AssertionError, match="a process was started"):
        growth.measure(few()[:1], folder)


def test_the_figure_and_the_tables_show_each_question(measured: tuple[Path, dict]) -> None:
    _, figures = measured
    with Image.open(io.BytesIO(growth_figure.png(figures["points"]))) as image:
        drawn = np.asarray(image.convert("L"))
    with Image.open(io.BytesIO(growth_figure.png([]))) as image:
        empty = np.asarray(image.convert("L"))
    assert drawn.shape[1] > 1000 and (drawn < 200).sum() > 1.05 * (empty < 200).sum()
    text = "\n".join(growth_tables.of_points(figures["points"]))
    for words in ("| clips a step |", "| parameters |", "| data workers |", "| imported |", "| processes, one"):
        assert words in text


@pytest.mark.parametrize(("by", "grows"), [(lambda x: 3 * x, 1.0), (lambda x: x * x, 2.0), (lambda x: 0 * x + 5, 0.0)])
def test_an_exponent_says_how_it_grows(by: object, grows: float) -> None:
    rows = [{"x": x, "y": by(x)} for x in (2, 4, 16)]  # type: ignore[operator]
    assert math.isclose(growth_tables.exponent(rows, "x", "y"), grows, abs_tol=1e-9)


def test_all_questions_are_asked() -> None:
    asked = {point.question for point in growth.points_of("S")}
    assert asked == {*growth_tables.QUESTIONS, "start", "workers"}
    assert {point.processes for point in growth.points_of("S")} == {1, 2, 4}


def test_a_size_that_is_not_known_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", "growth", "--output", str(tmp_path / "g"), "--size", "XL"]) == 2
    assert "--size XL: known are tiny" in capsys.readouterr().err and not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "points: missing"),
        ('{"points": 3}', "points: found 3, input should be a valid list"),
        ('{"points": [{"key": {}}]}', "points.0.question: missing"),
        (
            '{"points": [{"question": "batch", "name": "", "key": 1, "figures": 2}]}',
            "points.0.key: found 1, input should be a mapping",
        ),
        ("null", "found None, input should be a mapping"),
        ("[1]", "found [1], input should be a mapping"),
        ('{"points": NaN}', "not valid JSON: NaN is no JSON"),
    ],
)
def test_a_file_of_another_form_is_refused_and_stays(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "growth.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{file}: damaged: {said}")) as mistake:
        growth.measure(few(), tmp_path)
    assert "NaN" in text or str(mistake.value).endswith("; move it away, or name another --output")
    if text.startswith("{"):
        assert cli.main(["benchmark", "growth", "--size", "tiny", "--output", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err
    assert file.read_text() == text and [one.name for one in tmp_path.iterdir()] == ["growth.json"]


def test_figures_of_another_kind_are_refused_before_anything_is_measured(
    measured: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads((measured[0] / "growth.json").read_text())
    monkeypatch.setattr(LocalRun, "__init__", lambda *_: pytest.fail("a process was started"))
    for number, (name, value, said) in enumerate(
        [
            ("visible_tokens", 0, "visible_tokens: found 0, input should be greater than or equal to 1"),
            ("bytes", "many", "bytes: found many, input should be a valid integer"),
            ("clock", {}, "no imports in clock or cpu"),
            ("imports", {}, "imports: dictionary should have at least 1 item"),
        ]
    ):
        points = [row | {"figures": row["figures"] | {name: value} if name in row["figures"] else row["figures"]}
                  for row in found["points"]]  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "growth.json").write_text(json.dumps(found | {"points": points}))
        with pytest.raises(ValueError, match=re.escape(said)):
            growth.measure(few(), folder)


def test_an_exponent_of_equal_points_is_none() -> None:
    assert math.isnan(growth_tables.exponent([{"x": 2, "y": 3}, {"x": 2, "y": 4}], "x", "y"))


def test_what_footprint_kept_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("3", "{}", '{"key": "a", "bytes": "many"}'):
        (tmp_path / "measured.jsonl").write_text(line + "\n")
        assert cli.main(["benchmark", "footprint", "--dir", str(tmp_path), "--sizes", "tiny"]) == 2
        assert f"{tmp_path / 'measured.jsonl'}: damaged: 0" in capsys.readouterr().err
