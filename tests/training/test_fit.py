"""The largest model that a machine holds: what is printed starts, fits, and is no smaller than it could be."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from tgm_scale import cli
from tgm_scale import config as configuration
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.contracts import BatchLayout
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.planning.cost import CostQuery, cost_of, device_bytes, first_of
from tgm_scale.planning.footprint import ROOM, footprint

VITB = "configs/pretrain_vitb.yaml"


def fitted(tmp_path: Path, shape: str, *arguments: str) -> dict[str, Any]:
    file = tmp_path / "fit.json"
    assert cli.main(["plan", "--fit", shape, "--json", str(file), *arguments]) == 0
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("shape", "gpus", "gigabytes", "arguments"),
    [
        ("1x24GB", 1, 24, ["--clips", "10M"]),
        ("8x80GB", 8, 80, []),
        ("16x8X80gb", 128, 80, ["--config", "configs/pretrain_vitg.yaml", "--clips", "2.5k"]),
        ("3x40GB", 3, 40, ["objective.contrastive_batch=512"]),
        ("1x6GB", 1, 6, ["objective.contrastive_weight=0", "masking.recipe=tube", "guidance.towers=null"]),
    ],
)
def test_what_is_printed_starts_and_fits(
    tmp_path: Path, shape: str, gpus: int, gigabytes: int, arguments: list[str]
) -> None:
    """Every set of overrides parses, divides over the GPUs, fits, and makes a model; the next larger micro batch of
    the same way does not fit."""
    found = fitted(tmp_path, shape, *arguments)
    file = arguments[1] if arguments[:1] == ["--config"] else VITB
    given = [one for one in arguments if "=" in one]
    sizes = [one["size"] for one in found["sizes"]]
    assert sizes == [name for name in ("g", "H", "L", "B", "S") if name in sizes] and found["largest"]["size"] in sizes
    for one in [*found["sizes"], found["largest"], *found["savings"]]:
        config = configuration.load(file, [*given, *one["overrides"]])
        plan = plan_pretraining(config, first_of(gpus))
        need = footprint(plan, config.model.activation_checkpointing)
        assert plan.layout.micro_batch == one["micro_batch_size"]
        assert (need.stage, need.offload) == (one["stage"], one["offload"])
        assert need.device < one["bytes_per_gpu"] + 1 <= ROOM * gigabytes * 1e9 + 1
        share = config.train.global_batch_size // gpus
        for micro in range(plan.layout.micro_batch + 1, share + 1):
            if share % micro == 0 and micro % config.data.repeated_augmentation == 0:
                layout = BatchLayout(config.train.global_batch_size, micro, 0, gpus)
                more = footprint(dataclasses.replace(plan, layout=layout), config.model.activation_checkpointing)
                assert more.device + one["bytes_per_gpu"] - need.device > ROOM * gigabytes * 1e9
                break
        with torch.device("meta"):
            MaskedVideoAutoencoder(plan.shape.size, plan.shape.frames, plan.shape.image_size, embedding_width=512)


def test_the_time_is_that_of_the_clips_that_were_asked_for(tmp_path: Path) -> None:
    """10 million clips of ViT-B at 35 % of 165.2 TFLOP/s; thinning and half decoding change what is learned, and are
    apart."""
    found = fitted(tmp_path, "1x24GB", "--clips", "10M", "model.size=B")
    assert [one["size"] for one in found["sizes"]] == ["B"]
    config = configuration.load(VITB, ["model.size=B", *found["largest"]["overrides"]])
    assert config.train.steps == 9766 and config.masking.visible_ratio is None and config.model.decode_ratio == 1
    cost = cost_of(CostQuery.pretraining(config), 1)
    hours = 9766 * (cost.flop + 2 * cost.towers.macs * cost.run.layout.global_batch) / (0.35 * 165.2e12) / 3600
    assert found["largest"]["hours"] == pytest.approx(hours)
    assert found["largest"]["figures"]["the_run"]["kwh"] == pytest.approx(hours * 0.45)
    changes = [one["changes_learning"] for one in found["savings"]]
    assert changes == [["model.decode_ratio=0.5"], ["masking.visible_ratio=0.1"], [*changes[0], *changes[1]]]
    assert found["savings"][-1]["hours"] < 0.5 * hours
    towers = fitted(tmp_path, "1x24GB", "--clips", "10M", "model.size=B", "objective={terms: {predict: 1}}")
    assert towers["savings"][0]["changes_learning"] == changes[0], "its decoder runs, too"
    aligned = fitted(tmp_path, "1x24GB", "--clips", "10M", "model.size=B", "objective={terms: {align: 1}}")
    assert changes[0] not in [one["changes_learning"] for one in aligned["savings"]]


def test_the_command_is_one_that_a_shell_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(tmp_path, "2x80GB", "--clips", "1M", "run.dir=runs/my run")
    [line, *_] = [row for row in capsys.readouterr().out.splitlines() if row.startswith("  torchrun")]
    words = shlex.split(line)
    assert words[:7] == ["torchrun", "--nproc_per_node", "2", "-m", "tgm_scale", "pretrain", "--config"]
    assert configuration.load(words[7], words[8:]).run.dir == "runs/my run"
    assert {"data.shards=YOUR_SHARDS", "guidance.towers=YOUR_CLIP_FOLDER"} < set(words)


def test_another_global_batch_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(tmp_path, "256x8x80GB", "model.size=B")
    assert "the global batch is 4096, not the configuration's 1024" in capsys.readouterr().out
    fitted(tmp_path, "8x80GB", "model.size=B")
    assert "the global batch is" not in capsys.readouterr().out


def test_a_script_is_named_for_its_own_configuration_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "pretrain_vitb.yaml"
    own.write_text(Path(VITB).read_text())
    for file, start in ((VITB, "sbatch"), ("pretrain_vitb", "sbatch"), (str(own), "srun")):
        fitted(tmp_path, "2x8x80GB", "--config", file, "model.size=B")
        [line, *_] = [row for row in capsys.readouterr().out.splitlines() if "train.micro_batch_size" in row]
        assert ("--cpus-per-task=12 --mem=0" in line) == (start == "srun"), "sbatch's script has its own"
        assert line.split()[0] == start and (start == "sbatch" or str(own) in line)
        assert line.split().count("model.size=B") == 1


def test_a_run_in_fp32_is_not_timed_by_the_bf16_rate_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for precision in ("fp32", "bf16"):
        fitted(tmp_path, "8x80GB", "model.size=B", f"train.precision={precision}")
        assert ("the run is in fp32" in capsys.readouterr().out) is (precision == "fp32")


@pytest.mark.parametrize(
    "shape",
    ["0x24GB", "24GB", "1x-3GB", "1x24", "x24GB", "1x24TB", "1x0GB", "1xnanGB", "1x1e3GB", "2x2x2x24GB", "1x٣GB"]
    + ["9999999x80GB", "1x24GB please", "8xH100", "64x80GB"],
)
def test_other_shapes_are_refused_with_the_wanted_form(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", f"--fit={shape}"]) == 2
    said = capsys.readouterr().err
    assert f"--fit {shape}" in said and "1x24GB" in said and "16x8x80GB" in said and "--card H100" in said


@pytest.mark.parametrize("clips", ["0", "-5", "10X", "1e7", "nan", "M"])
def test_other_counts_of_clips_are_refused(clips: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--fit", "1x24GB", f"--clips={clips}"]) == 2
    assert "10M" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fit", "1x1GB"], "no model fits"),
        (["--fit", "1x24GB", f"train.global_batch_size={2**28}"], "a smaller train.global_batch_size"),
        (["--fit", "1x24GB", "data.size=220"], "data.size=220 is not a multiple of the model's patch of 16"),
        (["--fit", "1x24GB", "data.frames=15"], "data.frames=15 is not a multiple of the model's tubelet"),
        (["--fit", "1x24GB", "--nodes", "2"], "--nodes: --fit says it"),
        (["--fit", "1x24GB", "--card", "GTX 750"], "--card GTX 750: not in the table"),
        (["--fit", "1x24GB", "--price", "-1"], "--price -1: wanted more than 0"),
        (["--fit", "1x24GB", "--utilisation", "35"], "at most 1"),
        (["--clips", "10M", "--config", VITB], "goes with --fit"),
        ([], "--config is not given"),
    ],
)
def test_what_makes_no_plan_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_card_that_is_not_in_the_table_has_no_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = fitted(tmp_path, "1x12GB", "--clips", "10M", "model.size=S")
    assert found["largest"]["hours"] is None and "give --card or --tflops" in capsys.readouterr().out
    assert fitted(tmp_path, "1x12GB", "--clips", "10M", "--tflops", "60", "model.size=S")["largest"]["hours"] > 1


@pytest.mark.parametrize("overrides", [["model.size=H"], ["model.size=g", "train.micro_batch_size=128"]])
def test_what_would_help_fits(overrides: list[str], tmp_path: Path) -> None:
    """Every way that the verdict names, put on the command line, is one that fits."""
    arguments = ["plan", "--config", VITB, "--gpus-per-node", "8", "--card", "RTX 4090", *overrides]
    file = tmp_path / "plan.json"
    assert cli.main([*arguments, "--json", str(file)]) == 0
    verdict = json.loads(file.read_text())["verdict"]
    assert not verdict["fits"] and "what would help: " in verdict["text"], verdict
    for way in verdict["text"].partition("what would help: ")[2].split(", or "):
        assert cli.main([*arguments, "--json", str(file), *way.split()]) == 0
        assert json.loads(file.read_text())["verdict"]["fits"], way


@pytest.mark.parametrize(("card", "fits"), [("H100", True), ("RTX 4090", False)])
def test_checkpointing_that_is_not_needed_is_said(card: str, fits: bool, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"

    def verdict(*overrides: str) -> dict:
        arguments = ["plan", "--config", "pretrain_vitl", "--nodes", "8", "--card", card, *overrides]
        assert cli.main([*arguments, "--json", str(file)]) == 0
        return json.loads(file.read_text())

    many = "train.micro_batch_size=64"
    before, after = verdict(many), verdict(many, "model.activation_checkpointing=false")
    assert before["verdict"]["fits"] and after["verdict"]["fits"] == fits
    said = f"model.activation_checkpointing=false fits, too, with {after['memory']['total'] / 1e9:.1f} GB"
    said += ", and saves the second forward pass, 25% of the arithmetic"
    assert (said in before["verdict"]["text"]) == fits and "fits, too" not in after["verdict"]["text"]
    assert after["a_step"]["flop"] == pytest.approx(0.75 * before["a_step"]["flop"])


def test_memory_on_a_gpu_counts_towers_buckets_and_clips() -> None:
    config = configuration.load(VITB, ["train.global_batch_size=256", "train.micro_batch_size=32"])
    cost = cost_of(CostQuery.pretraining(config), 1)
    need = footprint(cost.run, False)
    assert need.buckets == 4 * 5e8  # DeepSpeed's default, in fp32 at stage 1
    assert need.clips == 3 * 16 * 224**2 * (256 + 4 * 32)  # a step's, and four micro batches that are copied ahead
    assert 2e8 < cost.towers.bytes < 4e8  # CLIP ViT-B/32 has 151 million parameters
    assert device_bytes(cost, False) == need.device + cost.towers.bytes
