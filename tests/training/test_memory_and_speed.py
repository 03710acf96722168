"""What trades memory or start-up time for speed changes no curve."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import run

from tgm_scale.runs.metrics import read_metrics

STEPS = 4


def losses(folder: Path, *overrides: str, seconds: int = 300) -> list[float]:
    run_folder = folder / "-".join(["run", *(o.partition("=")[0] for o in overrides)])
    where = [f"run.dir={run_folder}", f"data.shards={folder / 'data'}", f"train.steps={STEPS}"]
    arguments = ["-m", "tgm_scale", "pretrain", "--config", "configs/debug.yaml", *where, "data.synthetic.clips=64"]
    run(1, [*arguments, *overrides], seconds=seconds, anew="model.compile=true" in overrides)
    return [row["loss"] for row in read_metrics(run_folder)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speed")


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[float]:
    return losses(folder)


def test_activation_checkpointing_gives_the_same_curve_to_the_last_bit(folder: Path, plain: list[float]) -> None:
    assert losses(folder, "model.activation_checkpointing=true") == plain


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_curve(folder: Path, plain: list[float]) -> None:
    """Compiled kernels sum in another order: 1e-4 after four steps."""
    assert losses(folder, "model.compile=true", seconds=600) == pytest.approx(plain, rel=1e-4)
