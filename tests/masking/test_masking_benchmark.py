"""The masking benchmark runs and keeps what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tgm_scale.masking.recipes import RECIPES

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_recipe_is_measured_beside_a_step(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tgm_scale", "benchmark", "masking", "--config", "debug", "--towers", "small"]
    done = subprocess.run(
        [*command, "--turns", "1", "--clips", "1", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    rows = {row["what"]: row for row in figures["rows"]}
    assert rows.keys() >= RECIPES.keys() - {"flow_guided"}  # where OpenCV is missing it is left out, and said so
    assert all(rows[recipe]["mask"] for recipe in rows.keys() & RECIPES.keys())
    assert rows["text_guided"]["maps"] and not rows["tube"]["maps"]
    assert rows["relevance: compiled"]["maps"]
    measured = figures["gpu"] is not None
    assert (rows["relevance: bf16, own stream"]["share"] == "not measured: needs CUDA") != measured
    assert float(figures["step_ms"]) > 0 and figures["decoding"]["with_vectors_ms"] > 0
    assert "| text_guided |" in done.stdout
