"""A classifier that reads the tokens that vary most: the run, its test, its checkpoint elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import launch
import pytest
import torch
from made_finetune import CLIP, configuration

from tgm_scale.conversion.convert import convert
from tgm_scale.conversion.key_maps import ModelMetadata
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import Weights, build
from tgm_scale.evaluation.settings import load_finetune
from tgm_scale.finetuning.setup import plan_finetuning
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.vit import SIZES
from tgm_scale.runtime.distributed import find_process


def test_the_share_is_in_the_run_and_in_what_is_converted(tmp_path: Path, shards: str, checkpoint: Path) -> None:
    file, run = str(configuration(tmp_path, shards, checkpoint)), tmp_path / "run"
    command = ["-m", "tgm_scale", "finetune", "--config", file, "finetune.ema=null", "finetune.test_spatial_views=1"]
    command += ["finetune.random_erasing=0"]
    said = launch.run(1, [*command, "finetune.token_share=0.25"]).stdout
    assert ", 8 of 32 tokens\n" in said
    scores = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert json.loads((run / "results.json").read_text())["figures"]["top1"]["clips"] == len(scores) == 37

    weights = read(run)
    module = build(weights)
    assert module.tokens == 8 and weights.token_share == 0.25
    convert(weights, tmp_path / "out", "safetensors")
    assert torch.equal(build(read(tmp_path / "out"))(CLIP), module(CLIP))
    for target in ("huggingface", "videomae-finetune", "timm"):
        with pytest.raises(ValueError, match=rf"--to {target}: .*a share of 0.25 .*finetune.token_share"):
            convert(weights, tmp_path / target, target)

    noisy = launch.run(1, [*command, "finetune.token_share=0.25", "finetune.random_erasing=0.25"], code=2)
    assert "finetune.random_erasing=0.25 fills a box with noise" in noisy.stderr
    other = launch.run(1, [*command, "finetune.token_share=0.5"], code=2)
    assert "finetune.token_share: 0.25 there, 0.5 here" in other.stderr


@pytest.mark.parametrize("share", ["x", 7, -1, 0, float("nan"), None])
def test_a_share_that_is_none_is_damage(share: object) -> None:
    state = VideoClassifier(SIZES["tiny"], 4, 32, classes=5).state_dict()
    with pytest.raises(ValueError, match=r"config.finetune.token_share: found .*, wanted a share above 0"):
        Weights.of(
            "classifier",
            state,
            ModelMetadata(4, frames=4, image_size=32, config={"finetune": {"token_share": share}}),
            [],
        )
    for section in ([1], "x", 0):
        with pytest.raises(ValueError, match=r"config.finetune: found .*, wanted a section"):
            Weights.of(
                "classifier", state, ModelMetadata(4, frames=4, image_size=32, config={"finetune": section}), []
            )
    for config in (None, {}, {"finetune": None}):
        assert (
            Weights.of("classifier", state, ModelMetadata(4, frames=4, image_size=32, config=config), []).token_share
            == 1
        )


def test_what_is_planned_are_the_tokens_that_are_read(tmp_path: Path, shards: str, checkpoint: Path) -> None:
    file, process = str(configuration(tmp_path, shards, checkpoint)), find_process()
    whole, quarter = (
        plan_finetuning(load_finetune(file, [f"finetune.token_share={share}", "finetune.random_erasing=0"]), process)
        for share in (1, 0.25)
    )
    assert (whole.visible, quarter.visible) == (32, 8)
    assert quarter.macs_per_clip < 0.25 * whole.macs_per_clip
