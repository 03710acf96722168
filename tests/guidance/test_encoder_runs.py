"""Runs with a text encoder in place of a joint model, by the real command; and what they cannot have is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launch import run
from text_encoders import write_encoder, write_modules

from tgm_scale import config as configuration
from tgm_scale import load_guidance
from tgm_scale.assembly.checks import check
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.distributed import find_process

TERMS = "objective.terms={pixels: 1, contrast: 1}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mpnet")
    write_encoder(folder, "mpnet")
    write_modules(folder, {"pooling_mode": "mean"}, "Normalize")
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> list[str]:
    data = [f"data.shards={tmp_path_factory.mktemp('data') / 'clips'}", "data.synthetic.clips=24"]
    rest = ["train.steps=6", "checkpoint.every=3", "log.tensorboard=false", "optim.base_lr=3e-2"]
    return [*data, f"guidance.towers={encoder}", "masking.recipe=tube", TERMS, *rest]


def pretrain(folder: Path, options: list[str], world_size: int = 1, code: int = 0) -> list[dict[str, Any]]:
    command = ["-m", "tgm_scale", "pretrain", "--config", "configs/debug.yaml", f"run.dir={folder}", *options]
    run(world_size, command, code)
    return read_metrics(folder)


def test_one_and_two_processes_and_a_resumed_run_learn_the_same(options: list[str], tmp_path: Path) -> None:
    rows = pretrain(tmp_path / "one", options)
    assert len(rows) == 6 and all(row["loss_contrastive"] > 0 and row["loss_reconstruction"] > 0 for row in rows)
    two = pretrain(tmp_path / "two", [*options, "train.micro_batch_size=2"], world_size=2)
    assert [row["data_digest"] for row in two] == [row["data_digest"] for row in rows]
    for name in ("loss", "loss_contrastive", "loss_reconstruction"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in rows], rel=1e-5)

    assert len(pretrain(tmp_path / "stopped", [*options, "train.max_minutes=1e-9"], code=85)) < 6
    resumed = pretrain(tmp_path / "stopped", options)
    assert [(row["loss"], row["data_digest"]) for row in resumed] == [
        (row["loss"], row["data_digest"]) for row in rows
    ]

    found = json.loads((tmp_path / "one" / "origins.json").read_text())["guidance.towers"]
    assert {"model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"} <= set(found)
    of_run = [
        f"encoder.checkpoint={tmp_path / 'one'}",
        f"run.dir={tmp_path / 'found'}",
        options[0].replace("shards", "test"),
    ]
    run(1, ["-m", "tgm_scale", "retrieve", *of_run])
    figures = json.loads((tmp_path / "found" / "results.json").read_text())["figures"]
    assert 0 < figures["text to video R@10"]["value"] <= 1


def test_another_pooling_is_another_tower(options: list[str], encoder: Path, tmp_path: Path) -> None:
    """Of the same weights: a run goes on with its own alone."""
    pretrain(tmp_path / "run", [*options, "train.max_minutes=1e-9"], code=85)
    settings = encoder / "1_Pooling/config.json"
    before = settings.read_text()
    settings.write_text(before.replace("mean", "max"))
    command = [
        "-m",
        "tgm_scale",
        "pretrain",
        "--config",
        "configs/debug.yaml",
        f"run.dir={tmp_path / 'run'}",
        *options,
    ]
    try:
        message = run(1, command, 2).stderr
    finally:
        settings.write_text(before)
    assert "guidance.towers: " in message and "another 1_Pooling/config.json than the run was started with" in message


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (["masking.recipe=text_guided", TERMS], "masking.recipe=text_guided", "masking.recipe=tube"),
        (["masking.recipe=text_guided", "guidance.cached=true"], "masking.recipe=text_guided", "masking.recipe=tube"),
        (["masking.recipe=attention", TERMS], "masking.recipe=attention", "masking.recipe=tube"),
        (["masking.recipe=part_based", TERMS], "masking.recipe=part_based", "masking.recipe=tube"),
        (["objective.terms={pixels: 1, align: 1}"], "objective.terms.align", "'objective.terms={pixels: 1}'"),
        (["objective.terms={predict: 1, contrast: 2}"], "objective.terms.predict", "'objective.terms={contrast: 2}'"),
    ],
)  # fmt: skip
def test_what_looks_at_frames_is_refused(encoder: Path, overrides: list[str], key: str, remedy: str) -> None:
    config = configuration.load(
        "configs/debug.yaml", [f"guidance.towers={encoder}", "masking.recipe=tube", *overrides]
    )
    with pytest.raises(ValueError) as caught:
        check(config, plan_pretraining(config, find_process()))
    text = str(caught.value)
    assert text.startswith(f"{key} needs an image tower") and "is a text encoder alone" in text
    assert text.endswith(
        f"set guidance.towers to the folder of a CLIP or SigLIP model (or to 'small'), or set {remedy}"
    )


@pytest.mark.parametrize("name", ["contrast", "sigmoid", "nearest"])
def test_terms_that_read_captions_are_not(encoder: Path, name: str) -> None:
    given = [f"guidance.towers={encoder}", "masking.recipe=tube", f"objective.terms={{{name}: 1}}"]
    config = configuration.load("configs/debug.yaml", given)
    check(config, plan_pretraining(config, find_process()))


def test_a_preview_of_such_a_run_has_the_recipes_that_need_no_image_tower(
    options: list[str], encoder: Path, tmp_path: Path
) -> None:
    pretrain(tmp_path / "run", [*options, "train.steps=1"])
    page = ["-m", "tgm_scale", "preview", "--config", str(tmp_path / "run/config.yaml"), "--clips", "2"]
    page += ["data.synthetic=null", "--output", str(tmp_path / "page.html")]
    run(1, page)
    assert "tube" in (tmp_path / "page.html").read_text()
    message = run(1, [*page, "--recipes", "text_guided"], 2).stderr
    assert "masking.recipe=text_guided needs an image tower" in message


def test_maps_and_the_library_ask_for_a_joint_model(options: list[str], encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a mpnet folder has no image tower; wanted a CLIP or SigLIP"):
        load_guidance(encoder)
    pretrain(tmp_path / "run", [*options, "train.steps=1"])
    shards = options[0].partition("=")[2]
    tool = ["-m", "tgm_scale", "shards", "cache", "--shards", shards, "--towers", str(encoder)]
    message = run(1, [*tool, "--output", str(tmp_path / "maps")], 2).stderr
    assert "a mpnet folder has no image tower" in message and "--towers" in message
