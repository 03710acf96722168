"""The config.yaml of an evaluation: what it was asked for, and no value that it read from the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tgm_scale import cli

SHAPE = "truth.objects.0.shape"


def figures(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["figures"]


def test_the_configuration_that_was_written_makes_the_same_again(
    shards: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a folder of before, which has values that were not set."""
    first = tmp_path / "first"
    data = [f"data.train={shards}", f"data.test={shards}", f"data.label={SHAPE}", "data.workers=0"]
    command = ["knn", f"run.dir={first}", f"encoder.checkpoint={checkpoint}", *data]
    assert cli.main(command) == 0
    written = (first / "config.yaml").read_text()
    for folder in (first, tmp_path / "again"):
        assert cli.main(["knn", "--config", f"{first}/config.yaml", f"run.dir={folder}"]) == 0
    assert figures(tmp_path / "again") == figures(first)
    for name, value in (("size", "B"), ("initialisation", "videomae"), ("frames", 16), ("image_size", 224)):
        written = written.replace(f"  {name}: null\n", f"  {name}: {value}\n")
    ours = written.replace("size: B", "size: null")  # which has set frames alone
    for text, code in ((written, 0), (ours, 2), (written.replace("frames: 16", "frames: 2"), 2)):
        (first / "config.yaml").write_text(text)
        assert cli.main(command) == code
    assert "encoder.frames: 2 there, None here" in capsys.readouterr().err
