"""`make demo`: every floor, the figures' names, the report, and what a second start does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tgm_scale.demo.summary import at, check_expectations

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/demo.py", "--dir", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole: three seeds of both kinds of runs, beside the weights that they began with."""
    path = tmp_path_factory.mktemp("demo") / "run"
    done = demo(path)
    assert done.returncode == 0, done.stderr
    assert str(path / "report.html") in done.stdout
    return path


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_every_floor_is_met(summary: dict[str, Any]) -> None:
    assert not [str(finding) for finding in check_expectations(summary) if not finding.met]


def test_names_that_scripts_rely_on(summary: dict[str, Any]) -> None:
    paths = [f"mask.{role}_hidden" for role in ("object", "distractor", "same_colour", "same_shape", "random")]
    paths += ["mask.absent_caption_hidden", "loss.first", "export.max_difference", "seconds"]
    paths += [f"relevance_auc.{name}" for name in ("raw", "value", "vv", "colour_control", "absent_caption")]
    for variant in ("joint", "mae", "random"):
        paths += [f"probe.motion.{variant}.{figure}" for figure in ("mean", "std")] + [f"knn.motion.{variant}"]
    for path in paths:
        assert at(summary, path) >= 0, path


def test_the_report_shows_curves_strips_and_figures(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 6
    assert "tgm-scale pretrain --config configs/demo.yaml" in page


def test_a_finished_demo_is_not_done_again(folder: Path) -> None:
    before = (folder / "summary.json").read_text()
    again = demo(folder)
    assert again.returncode == 0 and again.stderr.count("done before") == 5
    assert (folder / "summary.json").read_text() == before


def test_other_settings_do_not_mix_with_what_is_there(folder: Path) -> None:
    other = demo(folder, "--steps", "70")
    assert other.returncode == 2 and "name another folder" in other.stderr
