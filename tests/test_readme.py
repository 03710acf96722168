"""The first run on one's own clips and the Python example of README.md, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tgm_scale
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import render_clip

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(folder: Path, *arguments: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, *arguments],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which README's first run on own clips was made, of one step."""
    folder = tmp_path_factory.mktemp("readme")
    lines = [line.strip() for line in README.partition("    file,caption\n")[2].splitlines()]
    rows = ["file,caption", *lines[: lines.index("")]]
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    (folder / "videos").mkdir()
    for index, row in enumerate(rows[1:]):
        (folder / "videos" / row.partition(",")[0]).write_bytes(encode_video(render_clip(index).frames, 12))
    [command] = [line for line in lines if line.startswith("tgm-scale pretrain --config debug run.dir=runs/look ")]
    said = run(folder, "-m", "tgm_scale", *shlex.split(command)[1:], "train.steps=1")
    assert f"clips.csv: {len(rows) - 1} usable (columns file, caption)" in said
    return folder


def blocks(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))


def test_the_examples_of_readme_and_of_its_page_run_on_the_run_of_readme(looked: Path) -> None:
    told = "print(video.dtype, *video.shape, *features.shape, *tokens.shape, *relevance.shape, hidden.float().mean())"
    page = (ROOT / "docs" / "PYTHON.md").read_text(encoding="utf-8")
    said = run(looked, "-c", "\n".join([blocks(README), told, blocks(page)])).splitlines()
    assert said[0] == "dog.mp4 ['a dog sniffing dry grass'] 1 3 8 64 64"
    assert said[-2:] == ["torch.uint8 1 3 8 64 64 1 128 1 256 128 1 4 8 8 tensor(0.5938)", "{} []"]


def test_every_name_is_on_the_page_on_python() -> None:
    page = (ROOT / "docs" / "PYTHON.md").read_text(encoding="utf-8")
    for name in tgm_scale.__all__:
        assert name == "__version__" or f"`{name}" in page, name
