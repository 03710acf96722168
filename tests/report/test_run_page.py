"""`tgm-scale report`: what stands on the page of a run, of several, and of what is damaged."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_run import Row, changed, made_run, row, write_rows

from tgm_scale import cli
from tgm_scale.objectives.term import CoupledTerm
from tgm_scale.objectives.terms import TERMS, column
from tgm_scale.report.run_figures import GROUPS
from tgm_scale.report.run_page import open_runs, write_page
from tgm_scale.report.run_view import look, stretches
from tgm_scale.runs import events
from tgm_scale.runs.run_folder import FAILED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 20 steps; in one the loss was not finite and the update refused."""
    rows = [row(step) for step in range(1, 21)]
    lost = {"loss": None, "not_finite": ["loss"], "update_refused": True, "refusal": "the loss is not finite"}
    rows[11] |= lost
    rows[9] |= {"knn_accuracy": 0.25}
    rows[19] |= {"knn_accuracy": 0.5, "skipped_samples": 2, "a_figure_of_tomorrow": 7}
    folder = made_run(tmp_path_factory.mktemp("runs") / "one", rows)
    skipped = {"step": 3, "key": "c/\u202e1 <b>", "reason": "decode", "detail": "http://user:secret@host/a?key=x"}
    (folder / "skipped.jsonl").write_text(json.dumps(skipped) + "\n" + json.dumps({**skipped, "key": "c/2"}) + "\n")
    keys = {"step": 12, "loss": "nan", "reason": "the loss is not finite", "rank": 0, "keys": ["c/3", "c/4"]}
    (folder / "refused.jsonl").write_text(json.dumps(keys) + "\n")
    event = {"time": "2026-01-02", "event": "checkpoint_damaged", "checkpoint": "step-00000012", "why": "cut short"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    return folder


def page_of(*runs: Path, output: Path) -> str:
    file, views = open_runs([str(one) for one in runs], str(output))
    write_page(file, views)
    assert file == output
    return output.read_text()


def paragraphs(page: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<p>(.*?)</p>", page)]


def cells(page: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page)]


def test_the_page_of_a_run_has_all_that_the_folder_tells(run: Path, tmp_path: Path) -> None:
    page = page_of(run, output=tmp_path / "page.html")
    titles = re.findall(r"<h[23]>(.*?)</h[23]>", page)
    wanted = """Loss|Reconstruction|Contrast|Learning rate|Gradient norm|Throughput|Waiting for data|Guidance
        |Skipped samples|Overlap with swapped captions|kNN accuracy|Starts and jobs|Refused updates
        |What happened to its files|Configuration|a_figure_of_tomorrow"""
    assert {title.strip() for title in wanted.split("|")} <= set(titles)
    said = "\n".join(paragraphs(page))
    assert "66%, chance 60%, equal masks 100%: the captions change the masks" in said
    assert "98%, chance 60%, equal masks 100%: the masks are little else than a box in the centre" in said
    assert "Not there: Model FLOP utilisation (only on a GPU whose peak is known)" in said
    told = cells(page)
    assert {"20 of 30 (67%)", "1 to 10", "11 to 20", "4711", "torch 2.12.0 -> 2.13.0"} <= set(told)
    assert {"the loss is not finite", "12", "c/3, c/4", "decode", "2", "checkpoint damaged"} <= set(told)
    assert "c/\\u202e1 <b>: step 3: http://***@host/a?key=***" in told  # cannot turn the page's text, lets nobody in
    assert "secret" not in page and page.isascii()
    assert "What resumes it: the command that started it (sbatch, as for job 4711)." in said
    assert "50% at step 20; from 25% (step 10) to 50% (step 20)" in page


def test_the_command_to_go_on_is_there_to_copy(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "a run", [row(1)])
    start = json.loads((folder / "environment.jsonl").read_text().splitlines()[0])
    (folder / "environment.jsonl").write_text(json.dumps(start) + "\n")
    page = page_of(folder, output=tmp_path / "page.html")
    assert (
        html.unescape(re.findall("<pre>(.*?)</pre>", page)[0]) == f"tgm-scale pretrain --config '{folder}/config.yaml'"
    )


@pytest.mark.parametrize(
    ("steps", "words"), [(1, "the last step"), (7, "about the last 5 steps"), (60, "about the last 50 steps")]
)
def test_shares_and_the_bottleneck_say_how_many_steps_they_are_of(tmp_path: Path, steps: int, words: str) -> None:
    rows = [row(step) | {"data_seconds": 0.4} for step in range(1, steps + 1)]
    page = page_of(made_run(tmp_path / "run", rows), output=tmp_path / "page.html")
    cards = [text for _, text in re.findall(r"<b>(.*?)</b><span>(.*?)</span>", page)]
    assert f"waiting for data, main process, {words}" in cards
    assert f"; over {words}<" in page


def test_shares_and_the_bottleneck_are_of_the_same_steps(tmp_path: Path) -> None:
    rows = [row(step) | {"data_seconds": 0.4 if step <= 100 else 0.1} for step in range(1, 151)]
    rows[-1] |= {"step_seconds": 25.5, "data_seconds": 25.1}  # counts as long as it took
    page = page_of(made_run(tmp_path / "run", rows), output=tmp_path / "page.html")
    cards = dict(re.findall(r"<b>(.*?)</b><span>(.*?)</span>", page))
    assert cards["60%"] == "waiting for data, main process, about the last 50 steps"
    assert re.search(r"waits for clips 60% of its time;.* over about the last 50 steps", page)


@pytest.mark.parametrize("told", [False, True], ids=["by metrics.jsonl", "by heartbeats"])
def test_the_tile_and_the_bottleneck_are_one_figure_without_the_first_step_of_a_start(
    tmp_path: Path, told: bool
) -> None:
    rows = [row(step) | {"guidance_seconds": 0.0, "data_seconds": 0.04} for step in range(1, 41)]
    for first in (0, 20):  # of each start: the loader opens, the model compiles
        rows[first] |= {"step_seconds": 10.0, "data_seconds": 9.0}
    folder = made_run(tmp_path / "run", rows)
    if told:
        (folder / "ranks").mkdir()
        beat = {"host": "n1", "seconds": {"data": 1.0, "guidance": 0.0, "checkpoint": 0.5, "update": 23.5}}
        (folder / "ranks" / "00000").write_text(json.dumps(beat))
    page = page_of(folder, output=tmp_path / "page.html")
    cards = {text: value for value, text in re.findall(r"<b>(.*?)</b><span>(.*?)</span>", page)}
    share, rest, steps = ("4%", "94%", 19) if told else ("8%", "92%", 38)
    assert cards[f"waiting for data, main process, about the last {steps} steps"] == share
    assert f"none: {rest} of the time goes into the model; over about the last {steps} steps" in cells(page)


@pytest.mark.parametrize("of_features", [False, True])
def test_results_that_are_broken_are_said_and_the_others_shown(run: Path, tmp_path: Path, of_features: bool) -> None:
    folder = changed(run, tmp_path / "run", lambda folder: (folder / "results.json").write_text("{"))
    if of_features:
        (folder / "config.yaml").write_text("encoder: {checkpoint: x}\n")
        (folder / "metrics.jsonl").unlink()
    (folder / "results-knn.json").write_text('{"method": "kNN", "figures": {"top-1": {"value": 0.5}}, "left_out": {}}')
    (folder / "results-x.json").write_text("[]")
    page = page_of(folder, output=tmp_path / "page.html")
    said = "\n".join(paragraphs(page))
    assert f"{folder}/results.json: " in said and f"{folder}/results-x.json: " in said
    assert "top-1 0.5000" in cells(page) and "How it stands" in page


def test_a_failure_before_the_newest_start_is_of_an_earlier_attempt(run: Path, tmp_path: Path) -> None:
    folder = changed(run, tmp_path / "run", lambda _: None)  # which has two starts
    for starts in (0, 1, 2):
        events.append(folder, FAILED, why=f"after {starts}", starts=starts)
    told = cells(page_of(folder, output=tmp_path / "page.html"))
    found = {told[at]: told[at - 1] for at in range(len(told)) if told[at].startswith("why after ")}
    earlier = "failed, an earlier attempt"
    assert found == {"why after 0": earlier, "why after 1": earlier, "why after 2": "failed"}


def test_a_picture_that_is_broken_is_said(run: Path, tmp_path: Path) -> None:
    folder = changed(run, tmp_path / "run", lambda _: None)
    (folder / "pictures").mkdir()
    (folder / "pictures/step-00000004.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    said = "\n".join(paragraphs(page_of(folder, output=tmp_path / "page.html")))
    assert f"{folder}/pictures/step-00000004.png: not a whole picture (PNG)" in said


def test_a_run_without_frozen_models_has_no_share_of_them(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", [row(step) | {"guidance_seconds": 0.0} for step in (1, 2)])
    page = page_of(folder, output=tmp_path / "page.html")
    assert "<h3>Guidance</h3>" not in page and "Guidance (only where masks or the contrast ask frozen models)" in page


def test_a_checkpoint_is_looked_into_by_preview(run: Path, tmp_path: Path) -> None:
    assert "preview --checkpoint" not in page_of(run, output=tmp_path / "none.html")
    whole = changed(run, tmp_path / "run", lambda _: None)
    (whole / "checkpoints" / "step-00000020").mkdir(parents=True)
    (whole / "checkpoints" / "step-00000020" / "manifest.json").write_text("{}")
    page = page_of(whole, output=tmp_path / "page.html")
    assert f"<pre>tgm-scale preview --checkpoint {whole} --output preview.html</pre>" in page


def test_a_run_of_other_terms_has_their_curves_and_says_why_nothing_is_reconstructed(tmp_path: Path) -> None:
    rows = [row(step) | {"loss_predict": 2 - step / 100} for step in (1, 2)]
    for one in rows:
        del one["loss_reconstruction"]
    folder = made_run(tmp_path / "run", rows, objective={"terms": {"predict": 1}, "reconstruction_weight": 0.0})
    page = page_of(folder, output=tmp_path / "page.html")
    assert "<h3>Predict</h3>" in page and "Other columns" not in page and "Sigmoid" not in page
    said = paragraphs(page)
    assert "None: the objective has no term pixels." in said
    assert any("Not there: Reconstruction (only with the term pixels)" in one for one in said)


def test_terms_of_every_kind_stand_under_the_objective(tmp_path: Path) -> None:
    """Those of the table by what they are, a stranger's by its name; what else is unknown stands apart."""
    figures = [name for term in TERMS.values() if issubclass(term, CoupledTerm) for name in term.metric_names]
    known = {figure.name for figure in GROUPS["Objective"] if figure.says}
    assert {*map(column, TERMS), *figures} <= known
    strange = {"loss_colour": 0.5, "colour_hue": 0.1, "colours": 3}
    rows = [row(step) | strange | {"loss_policy": 0.1, "loss_adversary": -0.2} for step in (1, 2)]
    folder = made_run(tmp_path / "run", rows, objective={"terms": {"pixels": 1, "colour": 0.5}})
    objective, other = (
        page_of(folder, output=tmp_path / "page.html").partition(f"<h2>{title}</h2>")[2].partition("<h2>")[0]
        for title in ("Objective", "Other columns")
    )
    for title in ("Policy", "Adversary", "Colour", "Colour hue"):
        assert f"<h3>{title}</h3>" in objective and f"<h3>{title}</h3>" not in other
    assert "Term colour: colour_hue." in objective and re.findall("<h3>(.*?)</h3>", other) == ["colours"]


def test_the_page_is_one_file_that_fetches_nothing(run: Path, tmp_path: Path) -> None:
    page = page_of(run, output=tmp_path / "page.html")
    assert not re.findall(r"<script|<link|<iframe|<img|@import|url\(|srcset|\bsrc=|\bhref=", page)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"] and len(page) < 100_000


def test_several_runs_are_laid_over_one_another_with_their_differences_alone(run: Path, tmp_path: Path) -> None:
    other = made_run(
        tmp_path / "two", [row(step) for step in range(1, 11)], masking={"recipe": "tube", "mask_ratio": 0.9}
    )
    page = page_of(run, other, output=tmp_path / "page.html")
    told = cells(page)
    assert {"masking.recipe", "text_guided", "tube", "masking.mask_ratio", "0.6", "0.9"} <= set(told)
    assert "train.global_batch_size" not in told and "run.dir" not in told
    loss = page.partition("<h3>Loss</h3>")[2].partition("</svg>")[0]
    assert len(set(re.findall(r'class="line (c\d)"', loss))) == 2
    assert f"{html.escape(str(other))}: starts and jobs" in page


def test_more_runs_than_colours_are_told_apart(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / f"r{number}", [row(1), row(2)]) for number in range(8)]
    page = page_of(*runs, output=tmp_path / "page.html")
    legend = page.partition("<div class='legend'>")[2].partition("</div>")[0]
    assert len(set(re.findall(r"swatch ([^']*)'", legend))) == 8


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(text.encode("latin-1"))


def _gone(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).unlink()


def _a_pipe(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")


def _rows(*rows: Row) -> Callable[[Path], object]:
    return lambda run: write_rows(run, list(rows))


DAMAGES = [
    (_gone("metrics.jsonl"), "There is no metrics.jsonl: the run has made no step yet"),
    (_a_pipe, "There is no metrics.jsonl"),
    (_text("metrics.jsonl", ""), "metrics.jsonl has no row: the run has made no step yet."),
    (_text("metrics.jsonl", "\xff\n[[\n"), "2 lines of metrics.jsonl are damaged"),
    (_gone("config.yaml"), "no config.yaml: not a run folder"),
    (_text("config.yaml", "[1]"), "wanted sections such as 'data:'"),
    (_text("config.yaml", "run: 3\nmodel: []\nmasking: x"), "config.yaml: damaged: run"),
    (_text("plan.json", "[]"), "plan.json: wanted a JSON object, found list"),
    (_gone("environment.jsonl"), "environment.jsonl: missing"),
    (_text("environment.jsonl", "{}"), "environment.jsonl: line 1 is damaged"),
    (_rows(row(2), row(1), row(9)), "not one after another from 1, 6 are lacking"),
    (_rows({"step": 1, "loss": 2.0}), "Missing from metrics.jsonl: Throughput; Seconds a step"),
]


@pytest.mark.parametrize(("change", "said"), DAMAGES, ids=[said for _, said in DAMAGES])
def test_what_is_lacking_or_damaged_is_a_sentence_on_the_page(
    run: Path, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    page = page_of(changed(run, tmp_path / "run", change), output=tmp_path / "page.html")
    assert said in "\n".join(paragraphs(page))


@pytest.mark.parametrize(
    "odd",
    [
        {"loss": 1e308, "grad_norm": -1e308},
        {"loss": 5e-324, "grad_norm": 0},
        {"loss": None, "not_finite": "loss"},
        {"loss": None, "not_finite": ["loss"]},
        {"grad_norm": "x", "learning_rate": True, "</svg><script>": 3, "mfu": {"a": [1]}},
        {"step_seconds": 0.0},
        {"step_seconds": -1e300, "data_seconds": 1e300},
        {"loss": int("1" + "0" * 307)},
        {"step": -(10**300)},
    ],
    ids=str,
)
def test_figures_that_are_none_are_no_traceback(tmp_path: Path, odd: dict[str, Any]) -> None:
    rows = [row(step) | (odd if step == 3 else {}) for step in range(1, 6)]
    page = page_of(made_run(tmp_path / "run", rows), output=tmp_path / "page.html")
    assert page.endswith("</html>\n") and "<script" not in page
    assert not re.findall(r'(?:points|d|x|y|cx|cy)="[^"]*(?:nan|inf)', page)


def test_frozen_features_have_figures_and_no_curves(tmp_path: Path) -> None:
    (folder := tmp_path / "knn").mkdir()
    (folder / "config.yaml").write_text("run: {dir: x}\nencoder: {checkpoint: runs/x}\n")
    found = {"method": "nearest neighbours", "figures": {"top1": {"value": 0.75}}, "left_out": {}}
    (folder / "results.json").write_text(json.dumps(found))
    page = page_of(folder, output=tmp_path / "page.html")
    assert "top1 0.7500" in cells(page) and "<svg" not in page and "metrics.jsonl" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere", "nowhere: no such folder; wanted a run folder"),
        ("a.txt", "a.txt: a file; wanted a run folder"),
        ("empty", "no config.yaml and no metrics.jsonl: not a run folder"),
        (".", "not a run folder; runs in it: one"),
        ("one one/", "one/: given twice"),
        ("one other", "of several runs: --output wanted"),
        ("one --output a.txt", "--output a.txt: there is a file that is no HTML page: name another"),
        ("one --output /dev/null", "--output /dev/null: no plain file"),
        ("one --output one", "--output one: a folder"),
        ("one --output nowhere/page.html", "--output nowhere/page.html: no folder nowhere"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    run: Path,
    tmp_path: Path,
    words: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "one")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["report", *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "a.txt").read_text() == "mine"


def test_the_page_of_one_run_lies_in_its_folder_and_is_made_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(run, tmp_path / "run", lambda _: None)
    for steps in (20, 5):
        write_rows(folder, [row(step) for step in range(1, steps + 1)])
        assert cli.main(["report", str(folder)]) == 0
        assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
        assert f"{steps} of 30" in (folder / "report.html").read_text()
    assert cli.main(["status", str(folder)]) == 0


def test_steps_that_a_later_start_made_again_are_that_ones(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", [row(step) for step in range(1, 31)])
    lines = [{"step": step, "time": "2026-01-01T10:00:00+0000"} for step in (0, 20, 10)]
    (folder / "environment.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = stretches(look(str(folder)))
    assert [(one.first, one.last, one.seconds) for one in found] == [(1, 10, 5.0), (21, 20, 0.0), (11, 30, 10.0)]


def test_a_run_of_100_000_steps_is_a_small_page_in_seconds(tmp_path: Path) -> None:
    rows = [row(step) for step in range(1, 100_001)]
    rows[77_776]["grad_norm"] = 5000.0
    folder = made_run(tmp_path / "run", rows)
    began = time.process_time()
    page = page_of(folder, output=tmp_path / "page.html")
    assert time.process_time() - began < 10
    assert len(page) < 500_000
    assert "to 5000 (step 77777)" in page


def test_the_help_imports_no_torch_and_says_how() -> None:
    code = "import sys\nfrom tgm_scale import cli\n"
    code += "try: cli.main(['help', 'report'])\nfinally: print({'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert "--output comparison.html" in done.stdout and done.stdout.endswith("set()\n"), done.stderr


def test_notices_stand_apart_from_what_was_left_out(tmp_path: Path) -> None:
    (folder := tmp_path / "knn").mkdir()
    (folder / "config.yaml").write_text("run: {dir: x}\nencoder: {checkpoint: runs/x}\n")
    counts, figure = {"no_video": 1, "duplicate_row": 2}, {"value": 0.75, "low": 0.7, "high": 0.8, "clips": 8}
    found = {"method": "nearest neighbours", "figures": {"top1": figure}, "left_out": counts}
    (folder / "results.json").write_text(json.dumps(found))
    reasons = [reason for reason, count in counts.items() for _ in range(count)]
    (folder / "left_out.jsonl").write_text("".join(json.dumps({"key": "k", "reason": why}) + "\n" for why in reasons))
    page = page_of(folder, output=tmp_path / "page.html")
    lost, noted = page.index("Left out before the first step"), page.index("Noted before the first step")
    assert lost < page.index("no_video", lost) < noted < page.index("duplicate_row", noted)
    assert "duplicate_row" not in page[lost:noted]
    assert {"left out", "1 no_video", "noted", "2 duplicate_row"} <= set(cells(page))
    assert "top1 0.7500; left out: 1 no_video; noted: 2 duplicate_row" in cells(page)
