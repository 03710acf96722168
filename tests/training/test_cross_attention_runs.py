"""The decoder with cross-attention on real engines: ZeRO stages, accumulation, checkpointing, resume to the bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from test_step import SAVED, STEPS, apart, run_cases

from tgm_scale.assembly.parts import checkpoint_metadata
from tgm_scale.assembly.run_plan import plan_pretraining, shape_of
from tgm_scale.config.files import from_tree
from tgm_scale.planning.cost import CostQuery, cost_of
from tgm_scale.runs import run_folder
from tgm_scale.runtime.distributed import ProcessInfo

CASE = {"model": "cross", "precision": "fp32"}
BF16 = {"model": "cross", "precision": "bf16"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Targets are a part of the hidden tokens, as with `model.decode_ratio`."""
    folder = tmp_path_factory.mktemp("cross")
    alone = {
        "base": {"stage": 0, **CASE},
        "checkpointed": {"stage": 0, "activation_checkpointing": True, **CASE},
        "accumulated": {"stage": 0, "micro": 2, **CASE},
        "again": {"stage": 0, "load": "base", **CASE},
        "bf16": {"stage": 1, **BF16},
        "bf16 again": {"stage": 1, "load": "bf16", **BF16},
    }
    two = {
        "1 of 2": {"stage": 1, **CASE},
        "2 of 2": {"stage": 2, "micro": 2, **CASE},
        "2 of 2 from 1": {"stage": 2, "load": "base", **CASE},
        # ZeRO-3 last: it replaces torch's linear for the whole process by one that rounds differently
        "3 of 2": {"stage": 3, "micro": 2, "activation_checkpointing": True, **CASE},
        "3 of 2 again": {"stage": 3, "micro": 2, "activation_checkpointing": True, "load": "3 of 2", **CASE},
    }
    return run_cases(folder, 1, alone) | run_cases(folder, 2, two)


@pytest.mark.parametrize("case", ["accumulated", "1 of 2", "2 of 2", "3 of 2", "2 of 2 from 1"])
def test_the_curve_is_that_of_one_process(results: dict[str, dict], case: str) -> None:
    assert apart(results, "base", case) < 1e-4
    curve = results["base"]["curve"]
    assert curve[0][1] > 1.08 and curve[-1][1] < 1.05, "it falls to that of noise, 1, which the clips are"


def test_activation_checkpointing_changes_no_bit(results: dict[str, dict]) -> None:
    assert results["checkpointed"]["curve"] == results["base"]["curve"]
    assert results["checkpointed"]["state"] == results["base"]["state"]


@pytest.mark.parametrize(("case", "origin"), [("again", "base"), ("bf16 again", "bf16"), ("3 of 2 again", "3 of 2")])
def test_going_on_is_exact_to_the_last_bit(results: dict[str, dict], case: str, origin: str) -> None:
    assert results[case]["curve"] == results[origin]["curve"][SAVED:] and len(results[case]["curve"]) == STEPS - SAVED
    assert results[case]["state"] == results[origin]["state"]


def tree(folder: Path, **model: object) -> dict:
    return {
        "run": {"dir": str(folder)},
        "data": {"shards": "none"},
        "model": {"size": "B", **model},
        "objective": {"contrastive_weight": 0},
        "masking": {"recipe": "tube", "mask_ratio": 0.9},
        "train": {"steps": 1, "global_batch_size": 8, "micro_batch_size": 8},
    }


@pytest.mark.parametrize("first", ["self", "cross"])
def test_a_run_does_not_resume_with_the_other_decoder(first: str, tmp_path: Path) -> None:
    other = {"self": "cross", "cross": "self"}[first]
    config = from_tree(tree(tmp_path / "run", decoder_attention=first))
    run_folder.write_start(run_folder.open_folder(config), config, [], {}, 0)
    assert run_folder.open_folder(config).is_dir()
    with pytest.raises(ValueError, match=f"model.decoder_attention: '{first}' there, '{other}' here.*new folder"):
        run_folder.open_folder(from_tree(tree(tmp_path / "run", decoder_attention=other)))


def test_the_plan_counts_the_decoder_by_hand(tmp_path: Path) -> None:
    """ViT-B, tube 0.9: 160 visible tokens; all 1,408 hidden ones, or half of them."""
    process = ProcessInfo(0, 1, 0, torch.device("cpu"))
    for ratio, targets in ((1.0, 1408), (0.5, 704)):
        config = from_tree(tree(tmp_path, decoder_attention="cross", decode_ratio=ratio))
        encoder = 160 * 1536 * 768 + 12 * (160 * (4 * 768**2 + 2 * 768 * 3072) + 2 * 160**2 * 768)
        block = 2 * (targets + 160) * 384**2 + 2 * targets * 160 * 384 + 2 * targets * 384 * 1536
        decoder = 160 * 768 * 384 + targets * 384 * 1536 + 4 * block
        found = plan_pretraining(config, process)
        assert found.macs_per_clip == encoder + decoder
        assert cost_of(CostQuery.pretraining(config), 1).forward == encoder + decoder
        assert checkpoint_metadata(config, shape_of(config))["model"] == asdict(found.shape.size) | {"name": "B"}
