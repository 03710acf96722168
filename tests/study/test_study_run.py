"""A study in earnest: begun, stopped amid its work, gone on with, and compared."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch import ROOT, environment, finished
from starts import Started

from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import render_clip
from tgm_scale.runs.metrics import read_metrics

pytestmark = pytest.mark.slow  # twelve commands of some seconds each


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and str(os.getpid()) != file.parent.name:
            found.append(line)
    return found


def made(folder: Path) -> int:
    return sum(len(read_metrics(file.parent)) for file in folder.glob("*/*/pretrain/metrics.jsonl"))


def test_a_study_is_stopped_goes_on_and_is_compared(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    arguments = ["-m", "tgm_scale", "study", "--config", str(file), f"run.dir={folder}"]
    study = Started(arguments, environment(), ROOT)
    end = time.monotonic() + 240
    while made(folder) < 4:
        assert study.poll() is None and time.monotonic() < end, study.communicate(1)
        time.sleep(0.05)
    study.send_signal(signal.SIGTERM)
    said, errors = study.communicate(120)
    assert study.returncode == 130 and "the same command resumes from here" in errors, said + errors
    assert not processes_of(folder)
    stopped = made(folder)
    assert stopped < 24, "two runs of twelve steps were begun, and stopped before their end"

    done = finished(arguments, seconds=600)
    assert done.returncode == 1, done.stderr  # of the arm that fails
    runs = {path.parent.parent.name + path.parent.name: path for path in folder.glob("*/*/pretrain")}
    for name in ("tube+pixelsseed-0", "tube+contrastseed-0"):
        assert [row["step"] for row in read_metrics(runs[name])] == list(range(1, 13))
    starts = (runs["tube+pixelsseed-0"] / "environment.jsonl").read_text().splitlines()
    assert len(starts) == 2 and len((runs["tube+pixelsseed-1"] / "environment.jsonl").read_text().splitlines()) == 1

    assert re.search(r"^tube.*, seed \d: \w+: done in \d+:\d\d; about \d+:\d\d left$", done.stdout, re.MULTILINE)
    summary = json.loads((folder / "summary.json").read_text())
    arms = summary["evaluations"]["knn"]["arms"]
    assert arms["tube+pixels"]["seeds"] == arms["tube+contrast"]["seeds"] == [0, 1]
    gain = arms["tube+contrast"]["differences"]["objective pixels"]
    each = [arms[name]["figures"]["top1"]["of each"] for name in ("tube+contrast", "tube+pixels")]
    assert gain["mean"] == pytest.approx(sum(one - other for one, other in zip(*each)) / 2)
    assert gain["low"] <= gain["mean"] <= gain["high"] and gain["clips"] == 16
    for seed in ("0", "1"):
        assert "exit code 2: tgm-scale pretrain: 4 of 4 samples were broken" in arms["tube+broken"]["missing"][seed]
    assert "| tube+broken | none | seed 0: pretrain: exit code 2" in done.stdout
    assert "<svg" in (folder / "report.html").read_text()

    again = finished([*arguments, "--dry-run"])
    left = [line for line in again.stdout.splitlines() if line.startswith("tgm-scale ")]
    assert len(left) == 4 and all("tube+broken" in line for line in left), again.stdout

    files = [folder / name for name in ("summary.json", "report.html")]
    before = [one.read_bytes() for one in files]
    for changed, said in (
        (
            f"data.shards={file.parent / 'shards'}, train.steps=13",
            f"train.steps: 12 there, 13 here ({folder}/tube+pixels/seed-0/pretrain and 5 more)",
        ),
        (
            f"data.shards={file.parent / 'test'}, train.steps=12",
            f"{folder}/tube+pixels/seed-0/pretrain/data.json: the run was started on other data",
        ),
    ):
        given = f"study.set=[{changed}, train.global_batch_size=4, train.micro_batch_size=4, checkpoint.every=3]"
        for mode in ([], ["--dry-run"], ["--tables"]):
            refused = finished([*arguments, given, *mode])
            assert refused.returncode == 2 and said in refused.stderr, refused.stderr
            assert [one.read_bytes() for one in files] == before
    assert not processes_of(folder)


def test_the_study_of_the_page_runs_as_it_stands_there(tmp_path: Path) -> None:
    """On eight made clips of two classes, with one seed and two steps."""
    page = (ROOT / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
    [text] = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "study:" in block]
    (tmp_path / "mystudy.yaml").write_text(text)
    (tmp_path / "videos").mkdir()
    for clip in range(8):
        (tmp_path / "videos" / f"{clip}.mp4").write_bytes(encode_video(render_clip(clip).frames, 12))
    for name, clips in (("train", range(4)), ("test", range(4, 8))):
        rows = "".join(f"{clip}.mp4,{'ab'[clip % 2]}\n" for clip in clips)
        (tmp_path / f"{name}.csv").write_text(f"file,label\n{rows}")
    few = [*re.findall(r"  set: \[(data.shards.*)train.steps=100\]", text), "train.steps=2"]
    given = ["study.seeds=[0]", f"study.set=[{''.join(few)}]", "study.parallel=1"]
    line = [sys.executable, "-m", "tgm_scale", "study", "--config", "mystudy.yaml", *given]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    arms = json.loads((tmp_path / "runs/mystudy/summary.json").read_text())["evaluations"]["knn"]["arms"]
    assert {name: of["seeds"] for name, of in arms.items()} == {
        "untrained": [0], "tube+pixels": [0], "motion+pixels": [0],
    }  # fmt: skip
    assert "\nseeds: 1; test clips: 4; few test clips: 4, fewer than 30" in done.stdout
