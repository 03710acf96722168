"""`train.init_from`: any path that can be read starts a run, with what fits and a word on what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign_checkpoints import image_mae
from made_weights import FRAMES, SIDE, SMALL, made, stated
from safetensors.torch import save_file

from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.conversion.convert import convert
from tgm_scale.conversion.key_maps import ModelMetadata
from tgm_scale.conversion.read import Initial, read, read_initial, size_in_keys
from tgm_scale.conversion.weights import Weights
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import SIZES, ModelSize
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective


def of_a_run(initial: Initial, size: ModelSize = SMALL) -> set[str]:
    """Load into a run's module; returns the names that start fresh."""
    objective = Objective.of({"pixels": 1.0, "contrast": 1.0}, TermSettings(size))
    module = JointModule(MaskedVideoAutoencoder(size, FRAMES, SIDE, embedding_width=8), objective)
    fresh, unknown = module.load_state_dict(initial.weights, strict=False)
    assert not unknown
    return set(fresh)


def test_a_run_starts_with_all_that_another_run_has(tmp_path: Path) -> None:
    convert(made("pretraining"), tmp_path / "all", "safetensors")
    assert of_a_run(read_initial(str(tmp_path / "all"), SMALL)) == set()


@pytest.mark.parametrize("target", ["videomae", "huggingface"])
def test_a_run_starts_from_a_foreign_pretraining(target: str, tmp_path: Path) -> None:
    weights = made("pretraining")
    convert(weights, tmp_path / "in", target)
    initial = read_initial(str(tmp_path / "in"), SMALL)
    assert of_a_run(initial) == {"log_scale", "model.projection.weight"}
    assert torch.equal(initial.weights["model.mask_token"], weights.state["mask_token"])


def test_a_decoder_of_another_size_is_left_out_in_words(tmp_path: Path) -> None:
    convert(made("pretraining"), tmp_path / "in", "videomae")
    other = replace(SMALL, decoder_depth=1)
    initial = read_initial(str(tmp_path / "in"), other)
    fresh = of_a_run(initial, other)
    assert "model.decoder.blocks.0.norm1.weight" in fresh and "model.mask_token" in fresh
    assert not [name for name in fresh if name.startswith("model.encoder.")]
    assert "decoder_depth 2 there, 1 here" in initial.report[-1]


def test_a_classifier_gives_its_encoder(tmp_path: Path) -> None:
    convert(made("classifier"), tmp_path / "in", "videomae-finetune")
    initial = read_initial(str(tmp_path / "in"), SMALL)
    fresh = {name for name in of_a_run(initial) if name.startswith("model.encoder.")}
    assert fresh == {"model.encoder.norm.weight", "model.encoder.norm.bias"}
    assert "fc_norm and head are left out" in initial.report[-1]


def test_an_image_model_is_inflated_over_the_runs_tubelet(tmp_path: Path) -> None:
    save_file(image_mae(32, 2, 16, 8), tmp_path / "image")
    weights = read(tmp_path / "image", ModelMetadata(4, frames=8, image_size=32), lossy=True, tubelet=4)
    convert(weights, tmp_path / "in", "safetensors")
    size = replace(SMALL, width=32, depth=2, heads=4, mlp=128, tubelet=4)
    fresh = of_a_run(read_initial(str(tmp_path / "in"), size), size)
    assert not [name for name in fresh if name.startswith("model.encoder.")]


def test_a_file_that_does_not_say_its_clips_is_not_said_to_be_trained_on_any(tmp_path: Path) -> None:
    save_file(made("pretraining", SIZES["tiny"]).state, tmp_path / "bare")
    found = read_initial(str(tmp_path / "bare"), SIZES["tiny"])
    assert found.clip == (16, 224) and "does not say its clips: taken for 16 frames of 224 pixels" in found.report[-1]


@pytest.mark.parametrize(("field", "value"), [("heads", 6), ("depth", 2), ("tubelet", 4)])
def test_another_encoder_is_refused_heads_included(field: str, value: int, tmp_path: Path) -> None:
    convert(made("pretraining"), tmp_path / "in", "videomae")
    with pytest.raises(ValueError, match=f"train.init_from=.*{field} {getattr(SMALL, field)} there, {value} here"):
        read_initial(str(tmp_path / "in"), replace(SMALL, **{field: value}))


def test_heads_that_nobody_states_are_asked_for(tmp_path: Path) -> None:
    weights = Weights.of("encoder", made("encoder").state, stated(), [])
    save_file(weights.state, tmp_path / "bare")
    with pytest.raises(ValueError, match=r"train.init_from=.*bare: how many heads\?"):
        read_initial(str(tmp_path / "bare"), SMALL)


def test_another_size_is_told_in_the_keys_that_make_it() -> None:
    tiny = SIZES["tiny"]
    assert size_in_keys(replace(tiny, patch=4)) == "; set model.size=tiny model.patch=4"
    assert size_in_keys(SIZES["S"]) == "; set model.size=S"
    assert size_in_keys(replace(tiny, width=96)) == "", "no size of the table"
