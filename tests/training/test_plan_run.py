"""What a run will cost, and options that make no plan."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from launch import ROOT, run

from tgm_scale import cli
from tgm_scale import config as configuration
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.evaluation.settings import load_pretraining
from tgm_scale.planning.cost import CostQuery, cost_of
from tgm_scale.runtime.distributed import ProcessInfo


def main(arguments: Sequence[str]) -> int:
    return cli.main(["plan", *arguments])


CONFIG = ["--config", "configs/pretrain_vitl.yaml", "guidance.towers=small"]


def test_a_plan_names_batch_step_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CONFIG, "--nodes", "2"]) == 0
    said = capsys.readouterr().out
    for words in ("16 GPUs", "PFLOP", "632 visible"):
        assert words in said, said


def test_a_small_model_costs_little_and_not_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "configs/demo.yaml", "--price", "2"]) == 0
    said = capsys.readouterr().out
    assert "a step  under 0.001 PFLOP, " in said and "checkpoint  0.012 GB each" in said
    assert "0.0012 at 2 a GPU hour" in said
    assert not re.search(r"(?<![\d.])0(\.0+)? (PFLOP|s|h|GB|GPU hours|kWh)\b", said), said


def test_many_gpus_leave_each_a_smaller_micro_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CONFIG, "--nodes", "16"]) == 0
    assert "2048 = 128 GPUs x 1 micro steps x 16" in capsys.readouterr().out


def test_cores_are_whole_and_one_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--config", "configs/pretrain_vitg.yaml", "guidance.towers=small", "--card", "RTX 4090"]
    given += ["--nodes", "1", "--gpus-per-node", "1", "train.micro_batch_size=2"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "loading  1 core, 0.4 a GPU" in said
    assert "videos a second, each for 2 clips (data.repeated_augmentation), " in said
    assert main([*given, "data.repeated_augmentation=1"]) == 0
    assert "data.repeated_augmentation" not in capsys.readouterr().out


def test_the_share_of_a_second_forward_pass_counts_the_cached_contrasts_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--gpus-per-node", "8", "train.micro_batch_size=64", "model.activation_checkpointing=true"]
    assert main([*CONFIG, *given]) == 0
    assert "saves the second forward pass, 21% of the arithmetic" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [("--nodes", "0"), ("--gpus-per-node", "-8"), ("--gpus-per-node", "17"), ("--utilisation", "0")]
)
def test_options_that_make_no_plan_are_refused(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CONFIG, *option]) == 2
    assert f"tgm-scale plan: {option[0]}" in capsys.readouterr().err


def test_what_is_advised_works(capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", "configs/pretrain_vitb.yaml", "--nodes", "1"]
    assert main(["guidance.towers=small", *config, "--gpus-per-node", "6"]) == 2
    said = capsys.readouterr().err
    counts = re.search(r"(\d+) or (\d+) GPUs", said)
    batches = re.search(r"global_batch_size=(\d+) or (\d+)$", said.strip())
    assert counts and batches, said
    for count in counts.groups():
        assert main(["guidance.towers=small", *config, "--gpus-per-node", count]) == 0
    for batch in batches.groups():
        assert (
            main(["guidance.towers=small", f"train.global_batch_size={batch}", *config, "--gpus-per-node", "6"]) == 0
        )


def test_the_first_pass_of_the_contrast_is_counted_where_the_run_makes_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A pass of 12 clips holds no whole number of groups of 8."""
    given = ["--config", "debug", "--gpus-per-node", "1", "train.global_batch_size=24", "train.micro_batch_size=12"]
    for negatives, said in ((8, True), (24, True), (12, False), (4, False)):
        assert main([*given, f"objective.contrastive_batch={negatives}"]) == 0
        assert ("first pass of the cached contrast" in capsys.readouterr().out) == said


def test_a_finetuning_has_a_plan_and_advice_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a classifier: all tokens, no decoder; and clips that are mixed share a micro batch."""
    config = ["--config", "configs/finetune_k400.yaml"]
    assert main(config) == 0
    said = capsys.readouterr().out
    assert "tokens  all 1568" in said and "B, 86 million parameters" in said
    assert main([*config, "--gpus-per-node", "7"]) == 2
    counts = re.search(r"(\d+) or (\d+) GPUs", capsys.readouterr().err)
    assert counts
    for count in counts.groups():
        assert main([*config, "--gpus-per-node", count]) == 0


HEADER = re.compile(
    r"Planned, not measured: (\d+) G multiply-accumulates per clip forward, ([\d.]+) PFLOP and\s+#\s+"
    r"([\d.]+) s per step, ([\d.]+) h in all at 35 % of an H100's peak, without guidance \(tgm-scale plan (.*?)\)"
)


@pytest.mark.parametrize("name", ["pretrain_vitb", "pretrain_vitl", "pretrain_vith", "pretrain_vitg"])
def test_the_figures_of_a_configurations_header_are_the_planners(name: str, tmp_path: Path) -> None:
    header = HEADER.search(Path(f"configs/{name}.yaml").read_text())
    assert header
    file = tmp_path / "plan.json"
    assert main(["--config", f"configs/{name}.yaml", *header[5].split(), "--json", str(file)]) == 0
    tree = json.loads(file.read_text())
    planned = (
        tree["a_clip"]["forward_macs"] / 1e9,
        tree["a_step"]["flop"] / 1e15,
        tree["a_step"]["seconds"],
        tree["the_run"]["hours"],
    )
    for written, value in zip(header.groups(), planned):
        digits = len(written.partition(".")[2])
        assert float(written) == pytest.approx(value, abs=0.5001 * 10**-digits), (written, value)


def test_every_figure_that_is_assumed_says_so_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    assert main([*CONFIG, "--nodes", "2", "--price", "2.5", "--json", str(file)]) == 0
    tree, said = json.loads(file.read_text()), capsys.readouterr().out
    for name in ("a_step", "frozen_towers", "memory", "verdict", "network", "checkpoint", "loading", "the_run"):
        assert tree[name]["assumes"] and tree[name]["assumes"] in said
    run = tree["the_run"]
    assert run["gpu_hours"] == pytest.approx(16 * run["hours_in_all"])
    exposed = run["steps"] * tree["network"]["exposed_seconds"] / 3600
    assert run["hours_in_all"] == pytest.approx(run["hours_with_towers"] + exposed)
    assert run["money"] == pytest.approx(2.5 * run["gpu_hours"]) and run["kwh"] == pytest.approx(
        0.7 * run["gpu_hours"]
    )


def test_more_gpus_are_less_efficient_and_what_is_short_is_named(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    arguments = ["--config", "configs/pretrain_vith.yaml", "--json", str(file)]
    assert main([*arguments, "--scale", "8,64,4096"]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["gpus"] for row in rows] == [8, 64, 4096] and [row["batch"] for row in rows] == [2048, 2048, 8192]
    efficiency = [row["efficiency"] for row in rows]
    assert efficiency == sorted(efficiency, reverse=True) and "network" in rows[-1]["short"]
    assert main([*arguments, "--scale", "4096", "--clips-per-gpu", "32"]) == 0
    [row] = json.loads(file.read_text())["rows"]
    assert row["contrast"] == 24 * (4096 * 32) ** 2 and "contrast" in row["short"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "12"], "--scale 12: wanted whole nodes of 8 GPUs"),
        (["--scale", "8,many"], "--scale 8,many: wanted numbers of GPUs"),
        (["--scale", "8", "--nodes", "1"], "--scale: wanted --config, and no --nodes"),
        (["--clips-per-gpu", "8"], "--clips-per-gpu 8: goes with --scale"),
        (["--overlap", "2"], "--overlap 2: wanted a share"),
        (["--rates", "nowhere.json"], "--rates nowhere.json: No such file"),
        (["--rates", "rates.json", "--tflops", "3"], "--rates and --tflops"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*CONFIG, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_measured_rates_take_the_place_of_a_cards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each part of the model by the block whose width is nearest."""
    file, rates = tmp_path / "plan.json", tmp_path / "rates.json"
    blocks = [{"precision": "bf16", "width": width, "flops": flops} for width, flops in ((768, 4e12), (384, 1e12))]
    rates.write_text(json.dumps({"format": 1, "machine": "a box", "blocks": blocks}))
    config = ["--config", "configs/pretrain_vitb.yaml", "--gpus-per-node", "8", "train.micro_batch_size=64"]
    assert main([*config, "--rates", str(rates), "--json", str(file)]) == 0
    tree = json.loads(file.read_text())
    cost = cost_of(CostQuery.pretraining(configuration.load(config[1], config[4:])), 8)
    encoder = cost.run.shape.macs(cost.run.visible, 0)
    seconds = 2 * 128 * (3 * encoder / 4e12 + 3 * (cost.forward - encoder) / 1e12 + cost.first_pass / 4e12)
    assert tree["a_step"]["seconds"] == pytest.approx(seconds) and "a box" in tree["a_step"]["assumes"]
    assert main([*config, "--rates", str(rates), "train.precision=fp32"]) == 2
    assert "measured in bf16, and the run is in fp32" in capsys.readouterr().err
    rates.write_text(json.dumps({"format": 1, "blocks": [blocks[0], blocks[1], {**blocks[0], "flops": 2e12}]}))
    assert main([*config, "--rates", str(rates)]) == 2
    assert "two rows for bf16 at a width of 768: remove one" in capsys.readouterr().err
    rates.write_text(json.dumps({"format": 1, "blocks": [{"precision": "bf16", "width": 0, "flops": 1}]}))
    assert main([*config, "--rates", str(rates)]) == 2
    assert "benchmark rates --json rates.json" in capsys.readouterr().err


def test_bytes_that_are_sent_are_those_that_two_ranks_send(tmp_path: Path) -> None:
    """At every stage, and where DeepSpeed's JSON keeps nothing gathered, or has no all-reduce of whole buckets."""
    run(2, [str(ROOT / "tests/training/traffic_worker.py"), str(tmp_path)])
    found = json.loads((tmp_path / "traffic.json").read_text())
    assert len(found) == 7
    for case, row in found.items():
        assert row["planned"] == pytest.approx(row["counted"], rel=1e-4), case
    assert [row["counted"] for row in found.values()] == pytest.approx([2, 5, 9, 5, 6, 12, 6], rel=1e-4)


@pytest.mark.parametrize(
    ("epochs", "samples", "steps"), [(1.1, 3000, 33), (2.2, 3000, 66), (0.5, 3001, 16), (1e-5, 3000, 1)]
)
def test_epochs_are_counted_as_they_are_written(epochs: float, samples: int, steps: int) -> None:
    """In binary fractions 1.1 * 3000 / 100 is a little above 33: a step too many."""
    overrides = ["train.global_batch_size=100", "train.micro_batch_size=100", f"train.epochs={epochs}"]
    config = load_pretraining("debug", overrides)
    plan = plan_pretraining(config, ProcessInfo(0, 1, 0, torch.device("cpu")))
    assert plan.for_samples(config.train, samples).steps == steps
