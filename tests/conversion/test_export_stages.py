"""One run under ZeRO-1, 2 and 3, on real engines in two processes, exports one file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import run

from tgm_scale.conversion.convert import convert
from tgm_scale.conversion.key_maps import ModelMetadata
from tgm_scale.conversion.read import read
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import SIZES

TRAINING = Path(__file__).parents[1] / "training"
SAVED = 2
CLIP = ModelMetadata(frames=4, image_size=32)  # as the worker's model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps under ZeRO-2, gone on with under 1 and 3, each saved anew before its next step."""
    folder = tmp_path_factory.mktemp("stages")
    cases: dict[str, dict] = {
        "zero2": {"stage": 2},
        "zero1": {"stage": 1, "load": "zero2"},
        "zero3": {"stage": 3, "load": "zero2"},
    }
    for name, case in cases.items():
        case.update(precision="fp32", steps=SAVED + 1, save_at=SAVED, save=str(folder / name / "checkpoints"))
        if "load" in case:
            case["load"] = str(folder / case["load"] / "checkpoints")
    (folder / "cases.json").write_text(json.dumps(cases))
    run(2, [str(TRAINING / "step_worker.py"), str(folder / "cases.json"), str(folder / "results.json")])
    return folder


def test_every_stage_of_one_run_exports_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    for target in ("videomae", "safetensors"):
        for stage in ("zero1", "zero2", "zero3"):
            weights = read(runs / stage, CLIP)
            assert weights.size.heads == 4 and "log_scale" in weights.state
            convert(weights, tmp_path / f"{target}-{stage}", target)
        files = [(tmp_path / f"{target}-{stage}").read_bytes() for stage in ("zero1", "zero2", "zero3")]
        assert files[0] == files[1] == files[2]


def test_what_is_exported_was_trained(runs: Path) -> None:
    first = MaskedVideoAutoencoder(SIZES["tiny"], 4, 32, embedding_width=16, seed=0).state_dict()
    state = read(runs / "zero3", CLIP).state
    for name, value in first.items():
        assert 0 < (state[name] - value).abs().max() < 1e-2, name  # two steps of Adam at 1e-3
