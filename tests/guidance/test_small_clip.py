"""The packaged CLIP tells shapes, not only colours; and the command that trains such a one works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import run

from tgm_scale.contracts import Grid
from tgm_scale.demo.corpus.make import SyntheticSpec
from tgm_scale.evaluation.masks.relevance import RelevanceMetrics, colour_scorer, evaluate, towers_scorer
from tgm_scale.guidance.towers import load_image_tower, load_text_tower

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tgm_scale" / "assets" / "small_clip"
GRID = Grid(8, 8, 8)
CLIPS, SPEC = 40, SyntheticSpec(seed=2024)  # neither trained nor tuned on


@pytest.fixture(scope="module")
def judged() -> RelevanceMetrics:
    return evaluate(towers_scorer(load_text_tower(FOLDER), load_image_tower(FOLDER), "raw", GRID), CLIPS, GRID, SPEC)


def test_the_folder_is_small_and_says_how_it_was_made() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 5_000_000
    assert "tools/train_small_clip.py" in (FOLDER / "TRAINING.md").read_text()


def test_the_named_object_is_hidden_and_the_others_less(judged: RelevanceMetrics) -> None:
    hidden = judged.hidden
    assert hidden["object"] >= 0.90
    assert hidden["same_colour"] <= hidden["object"] - 0.10, "shape counts, not only colour"
    assert (hidden["same_colour"] + hidden["same_shape"]) / 2 <= 0.75
    assert judged.auc >= 0.85


def test_an_absent_object_points_nowhere(judged: RelevanceMetrics) -> None:
    assert judged.absent_auc is not None and 0.45 <= judged.absent_auc <= 0.55


def test_colour_alone_does_worse_on_the_look_alike(judged: RelevanceMetrics) -> None:
    colour = evaluate(colour_scorer(GRID), CLIPS, GRID, SPEC)
    assert judged.hidden["same_colour"] < colour.hidden["same_colour"] - 0.10


def test_the_training_command_writes_towers_that_load(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    command = ["tools/train_small_clip.py", "--output", str(folder), "--steps", "3"]
    run(1, command)
    text, image = load_text_tower(folder), load_image_tower(folder)
    assert text.encode(["a red star"]).norm(dim=-1).item() == pytest.approx(1, abs=1e-5)
    assert image.patch_tokens(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "raw").shape == (1, 8, 8, 128)
    assert "holds a model already" in run(1, command, code=2).stderr
