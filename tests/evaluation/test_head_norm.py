"""finetune.head_norm=batch: the same however a batch is split and where a run stops; folded into the head it leaves.

tests/training/test_classifier_stages.py compares its steps with torch's BatchNorm."""

from __future__ import annotations

import json
import re
from pathlib import Path

import launch
import pytest
import torch
from made_finetune import CLIP, SIZE, configuration, losses

from tgm_scale.checkpoints import ema
from tgm_scale.checkpoints.checkpoint import Reader
from tgm_scale.checkpoints.folders import latest
from tgm_scale.conversion.read import read
from tgm_scale.evaluation.settings import load_finetune
from tgm_scale.models.classifier import HEAD_NORM, HeadNorm, VideoClassifier, without_head_norm


def test_folded_into_the_head_it_gives_the_scores_of_the_averaged_statistics() -> None:
    module = VideoClassifier(SIZE, 4, 32, classes=5).eval()
    norm = HeadNorm.begin(SIZE.width, torch.device("cpu"))
    assert torch.equal(norm.mean_and_scale(), norm.identity()), "before the first step it changes nothing"
    with torch.no_grad():
        features_BD = module.features(CLIP).double()
        for clips_BD in (features_BD[:3], features_BD[3:]):
            norm = norm.updated(torch.stack([clips_BD.mean(0), clips_BD.square().mean(0)]), 0.9)
        shares = torch.tensor([0.9] * 3 + [1.0] * 3, dtype=torch.float64)[:, None] / 1.9 / 3
        mean_D = (features_BD * shares).sum(0)
        variance_D = ((features_BD - mean_D) ** 2 * shares).sum(0)
        wanted_BC = module.head(((features_BD - mean_D) / (variance_D + 1e-6).sqrt()).float())
        assert not torch.allclose(module(CLIP), wanted_BC, atol=1e-2)
        norm = HeadNorm.of_state(json.loads(json.dumps(norm.state())))
        torch.testing.assert_close(module(CLIP, None, norm.mean_and_scale())[0], wanted_BC, rtol=1e-4, atol=1e-4)
        other = HeadNorm(norm.averages_2D + 1, 1.0)
        manifest = {HEAD_NORM: {"last": norm.state(), "averaged": other.state()}}
        averaged = without_head_norm(module.state_dict(), manifest, averaged=True)
        module.load_state_dict(without_head_norm(module.state_dict(), manifest, averaged=False))
        torch.testing.assert_close(module(CLIP), wanted_BC, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(averaged["head.weight"], module.head.weight)


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_batch_of_one_video_has_nothing_to_normalise_by(repeats: int) -> None:
    """Its features would be 0, and only the head's bias would learn."""
    given = ["run.dir=x", "data.train=a", "data.test=b", "finetune.mixup=0", "finetune.cutmix=0"]
    given += [f"data.repeated_augmentation={repeats}", f"train.micro_batch_size={repeats}"]
    batch = [*given, f"train.global_batch_size={repeats}"]
    assert load_finetune("finetune_few_clips", [*batch, "finetune.head_norm=none"])
    assert load_finetune("finetune_few_clips", [*given, f"train.global_batch_size={2 * repeats}"])
    with pytest.raises(ValueError, match=rf"train.global_batch_size={repeats} is one video .*finetune.head_norm=none"):
        load_finetune("finetune_few_clips", batch)


def test_a_run_is_the_same_split_and_resumed_and_its_results_are_of_what_is_exported(
    shards: str,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    """With averaged weights, which have averaged statistics of their own."""
    command = ["-m", "tgm_scale", "finetune", "--config", str(configuration(tmp_path, shards, checkpoint))]
    command += ["finetune.head_norm=batch"]
    first, second = tmp_path / "run", tmp_path / "again"
    said = launch.run(1, [*command, "train.micro_batch_size=8"]).stdout
    assert re.search("^run .* test videos of .* steps of .*, head_norm batch$", said, re.MULTILINE)
    command.append(f"run.dir={second}")
    launch.run(2, [*command, "deepspeed.stage=2", "train.max_minutes=1e-9"], code=85)
    assert len(losses(second)) == 1
    launch.run(1, command)
    assert losses(second) == pytest.approx(losses(first), abs=1e-4)

    newest = latest(first / "checkpoints")
    assert newest is not None
    reader, exported, raw = Reader(newest), read(first), read(first, raw=True)
    assert reader.manifest[HEAD_NORM].keys() == {"last", "averaged"}
    for given, weights, averaged in (
        (exported, ema.read(first, reader.progress.step), True),
        (raw, reader.weights(), False),
    ):
        folded = without_head_norm(weights, reader.manifest, averaged)
        assert all(torch.equal(given.state[name], value) for name, value in folded.items())
        assert not torch.equal(folded["head.weight"], weights["head.weight"])
    assert any("folded into the head" in note for note in exported.notes)
