"""docs/EXTENDING.md walked through: its files and edits make a package that trains, with what they add."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import render_clip

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|diff)\n(?:# |--- )(\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHORT = ["train.steps=1", "data.workers=0", "log.tensorboard=false"]


def blocks() -> Iterator[tuple[str, str, str]]:
    """Kind, file and text of each block of the page that names a file."""
    yield from BLOCK.findall((ROOT / "docs" / "EXTENDING.md").read_text())


def edited(text: str, edit: str) -> str:
    """A file's text with an edit: lines that begin with a blank or - are found together, once; + are put there."""
    before = "".join(line[1:] + "\n" for line in edit.splitlines() if line[:1] in ("-", " "))
    after = "".join(line[1:] + "\n" for line in edit.splitlines() if line[:1] in ("+", " "))
    assert text.count(before) == 1, f"the file does not have this once:\n{before}"
    return text.replace(before, after)


def run(site: Path, *arguments: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, *arguments], env=variables, cwd=site, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all that the page writes and edits, and three clips with a list of its format."""
    site = tmp_path_factory.mktemp("extended")
    for name in ("tgm_scale", "configs"):
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    for kind, name, text in blocks():
        file = site / name
        assert kind == "diff" or not file.exists(), name
        file.write_text(edited(file.read_text(), text) if kind == "diff" else text)
    rows = ["match,play,commentary,kind"]
    for index in range(3):
        clip = render_clip(index)
        video = site / "clips" / "final" / f"play{index}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(encode_video(clip.frames, 12))
        rows.append(f"final,play{index},{clip.captions[0]},goal")
    (site / "plays.csv").write_text("\n".join(rows) + "\n")
    return site


def test_a_recipe_of_a_script_of_ones_own_needs_no_edit(tmp_path: Path) -> None:
    [script] = [text for kind, name, text in blocks() if name == "pretrain_centre.py"]
    (tmp_path / "pretrain_centre.py").write_text(script)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "pretrain_centre.py", "--config", "debug", "masking.recipe=my_centre", *SHORT],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "masking my_centre (1 my_centre, top_k): hides 38 of 64 tokens of each slot" in ended.stdout


def test_the_edited_package_trains_with_what_was_added(package: Path) -> None:
    said = run(
        package,
        *("-m", "tgm_scale", "pretrain", "--config", "debug", "run.dir=runs/edited", *SHORT),
        *("data.shards=plays.csv", "data.root=clips", "data.synthetic=null", "model.size=mini"),
        *("masking.recipe=centre", "masking.options={sources: {centre: 0.5, texture: 0.5}}"),
        "objective.terms={pixels: 1, colour: 0.5}",
    )
    assert "our sports clips" in said and "masking centre (0.5 centre + 0.5 texture, top_k)" in said
    assert "objective 1 pixels + 0.5 colour" in said
    config = yaml.safe_load((package / "runs" / "edited" / "config.yaml").read_text())
    assert config["model"]["size"] == "mini" and config["objective"]["terms"] == {"pixels": 1, "colour": 0.5}
    [row] = [json.loads(line) for line in (package / "runs" / "edited" / "metrics.jsonl").read_text().splitlines()]
    assert row["loss"] == pytest.approx(row["loss_reconstruction"] + 0.5 * row["loss_colour"])


def test_the_added_term_keeps_the_contract(package: Path, tmp_path: Path) -> None:
    """As tests/training/test_terms.py has it for the table's own, on one process."""
    (tmp_path / "cases.json").write_text(json.dumps({"terms": ["colour"], "folder": str(tmp_path / "runs")}))
    worker = str(ROOT / "tests" / "training" / "term_worker.py")
    run(package, worker, str(tmp_path / "cases.json"), str(tmp_path / "out.json"))
    found = json.loads((tmp_path / "out.json").read_text())
    base = found["colour: base"]
    assert all(found[f"colour: {way}"]["gradient apart"] < 1e-5 for way in ("base", "accumulated"))
    assert found["colour: garbage"]["curve"] == base["curve"] and found["colour: again"]["curve"] == base["curve"][-2:]


def test_the_edited_masks_follow_place_and_pixels(package: Path) -> None:
    code = """
import torch
from tgm_scale.contracts import Grid
from tgm_scale.guidance.texture import texture
from tgm_scale.masking.recipes import build_masker
grid, seeds = Grid(2, 8, 8), torch.arange(2)
middle = build_masker("centre", grid, 0.25).hidden(seeds)
assert middle[:, :, 3:5, 3:5].all() and not middle[:, :, 0].any()
video = torch.zeros(2, 3, 4, 64, 64, dtype=torch.uint8)
video[:, :, 2:, 8:16, 24:32] = torch.randint(0, 255, (8, 8), dtype=torch.uint8)
masker = build_masker("random", grid, 1 / 64, sources={"texture": 1.0}, scope="slot")
found = masker.hidden(seeds, texture=texture(video, grid))
assert found[:, 1, 1, 3].all() and found[:, 1].sum() == 2
"""
    run(package, "-c", code)


def test_the_places_where_what_is_fixed_would_be_changed_are_there() -> None:
    table = (ROOT / "docs" / "EXTENDING.md").read_text().partition("| part | choice | file |")[2].splitlines()[2:]
    named = [name for row in table for name in re.findall(r"`(\w+/\w+\.py)`", row.rsplit("|", 2)[1])]
    assert len(named) > 15
    assert not [name for name in named if not (ROOT / "tgm_scale" / name).is_file()]


def test_an_edit_that_does_not_fit_is_told() -> None:
    with pytest.raises(AssertionError, match="does not have this once"):
        edited("a\nb\n", " a\n-c\n+d\n")
    assert edited("a\nb\n", " a\n-b\n+d\n") == "a\nd\n"
