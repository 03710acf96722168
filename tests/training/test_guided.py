"""Text-guided runs by the real command: the same masks in any layout, and from relevance kept in the shards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from launch import run

from tgm_scale.assembly.towers import load_towers
from tgm_scale.config import load
from tgm_scale.runs.metrics import read_metrics

CONFIG = """
run: {{dir: {folder}/run}}
data: {{shards: {shards}, frames: 4, stride: 2, size: 32, workers: 0, max_skipped_share: 0.2}}
guidance: {{towers: {towers}}}
masking: {{recipe: text_guided, mask_ratio: 0.6}}
model: {{size: tiny}}
optim: {{base_lr: 3e-2}}
train: {{steps: 8, global_batch_size: 8, micro_batch_size: 4}}
log: {{every: 1, tensorboard: false}}
"""


@pytest.fixture
def config(tmp_path: Path, shards: Path, towers: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.format(folder=tmp_path, shards=shards, towers=towers))
    return file


def pretrain(config: Path, *overrides: str, world_size: int = 1, code: int = 0) -> str:
    return run(world_size, ["-m", "tgm_scale", "pretrain", "--config", str(config), *overrides], code).stderr


def digests(folder: Path) -> list[str]:
    return [row["data_digest"] for row in read_metrics(folder)]


def test_masks_do_not_depend_on_the_layout_and_the_alarm_has_its_figures(config: Path, tmp_path: Path) -> None:
    pretrain(config)
    pretrain(config, f"run.dir={tmp_path / 'two'}", "train.micro_batch_size=2", world_size=2)
    assert digests(tmp_path / "two") == digests(tmp_path / "run")
    row = read_metrics(tmp_path / "run")[-1]
    for name in ("mask_swapped_overlap", "mask_centre_overlap", "mask_slot_repeat"):
        assert 0 <= row[name] <= 1
    other = tmp_path / "random"
    pretrain(config, f"run.dir={other}", "masking.recipe=random")
    assert digests(other) != digests(tmp_path / "run"), "the digest covers the masks"


def test_relevance_kept_in_the_shards_guides_and_is_checked(
    config: Path, tmp_path: Path, shards: Path, towers: Path
) -> None:
    cached = tmp_path / "cached"
    tool = ["-m", "tgm_scale", "shards", "cache", "--shards", str(shards), "--towers", str(towers)]
    run(1, [*tool, "--output", str(cached)])
    pretrain(config, f"data.shards={cached}", "guidance.cached=true", "data.workers=1")
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 8 and "mask_slot_repeat" in rows[-1]
    alone = tmp_path / "alone"
    pretrain(
        config, f"data.shards={cached}", "guidance.cached=true", "objective.contrastive_weight=0", f"run.dir={alone}"
    )
    settings = load(alone / "config.yaml", []).guidance
    towers_of_it = load_towers(settings, {"relevance"}, False, torch.device("cpu"))
    assert len(read_metrics(alone)) == 8 and towers_of_it.text is None, "nobody reads embeddings of its captions"
    message = pretrain(
        config,
        f"data.shards={cached}",
        "guidance.cached=true",
        "guidance.scorer=raw",
        f"run.dir={tmp_path / 'other'}",
        code=2,
    )
    assert "were made with other towers or settings" in message and "guidance.scorer" in message


def test_looking_a_step_ahead_changes_no_figure(config: Path, tmp_path: Path) -> None:
    """Losses, masks, skipped samples and the guidance's own figures, to the last bit; with two micro steps a step."""
    pretrain(config)
    pretrain(config, f"run.dir={tmp_path / 'ahead'}", "guidance.own_stream=true")
    rows, ahead = (
        [
            {key: value for key, value in row.items() if "second" not in key and key != "mfu"}
            for row in read_metrics(folder)
        ]
        for folder in (tmp_path / "run", tmp_path / "ahead")
    )
    assert len(rows) == 8 and "mask_swapped_overlap" in rows[-1] and rows[-1]["skipped_samples"]
    assert ahead == rows


def test_guidance_without_towers_is_a_mistake(config: Path) -> None:
    message = pretrain(config, "guidance.towers=null", "objective.contrastive_weight=0", code=2)
    assert "masking.recipe=text_guided is guided by a frozen model" in message


@pytest.mark.skipif("TGM_REAL_DATA" not in os.environ, reason="TGM_REAL_DATA is not set")
def test_real_videos_pretrain_with_falling_loss(config: Path, real: Path, tmp_path: Path) -> None:
    """Shards made from real clips by the tool, 20 steps; every bad file and missing video is named with its reason."""
    shards = tmp_path / "real_shards"
    rows = (real / "internvid.jsonl").read_text()
    bad = ["corrupted", "truncated", "empty", "text_not_video"]
    videos = tmp_path / "videos"
    videos.mkdir()
    for file in [*(real / "videos").iterdir(), *(real / "edge" / f"{name}.mp4" for name in bad)]:
        (videos / file.name).symlink_to(file)
    for name in bad:
        rows += (
            f'{{"YoutubeID": "{name}", "Start_timestamp": "00:00:00.000", "End_timestamp": "00:00:05.000", '
            f'"Caption": "a broken file", "UMT_Score": 0.5}}\n'
        )
    annotations = tmp_path / "rows.jsonl"
    annotations.write_text(rows)
    tool = [
        "-m",
        "tgm_scale",
        "shards",
        "make",
        "--annotations",
        str(annotations),
        "--videos",
        str(videos),
    ]
    run(1, [*tool, "--output", str(shards), "--short-side", "64", "--workers", "2"])
    report = (shards / "report.json").read_text()
    for name in bad:
        assert name in report, "each bad file is named"
    assert report.count("missing_video") >= 1, report
    pretrain(config, f"data.shards={shards}", "data.size=48", "train.steps=20", "optim.warmup_share=0.1")
    found = [row["loss_reconstruction"] for row in read_metrics(tmp_path / "run")]
    assert len(found) == 20 and all(loss == loss and loss < 10 for loss in found)
    assert sum(found[-5:]) < 0.95 * sum(found[:5])
