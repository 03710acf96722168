"""What the run derives for DeepSpeed, and how a contradiction is told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tgm_scale.assembly.checks import check
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.config import OptimConfig, load
from tgm_scale.contracts import BatchLayout
from tgm_scale.engine.plan import EnginePlan, Schedule, engine_config, parameter_groups, resolve_precision
from tgm_scale.runtime.distributed import find_process

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"


def plan(config_file: Path | None = None, **changes: object) -> EnginePlan:
    values: dict = {
        "stage": None,
        "config_file": None if config_file is None else str(config_file),
        "layout": BatchLayout(32, 4, world_size=2),
        "precision": "bf16",
        "clip_norm": 1.0,
        "weight_decay": 0.05,
        "betas": (0.9, 0.95),
    }
    return EnginePlan(**(values | changes))


@pytest.fixture
def json_file(tmp_path: Path) -> Path:
    return tmp_path / "ds.json"


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.micro_batch_size=5 x 2 processes = 10"):
        BatchLayout(32, 5, world_size=2)


def test_derived_values_are_filled_in(json_file: Path) -> None:
    json_file.write_text('{"train_batch_size": "auto", "zero_optimization": {"stage": 2, "overlap_comm": true}}')
    config = engine_config(plan(json_file))
    assert config["train_batch_size"] == 32
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 1.0
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": True, "immediate_grad_update": True}
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}


def test_gradients_of_bf16_are_summed_in_fp32_unless_the_json_says_otherwise(json_file: Path) -> None:
    found = engine_config(plan(stage=2))
    assert found["data_types"] == {"grad_accum_dtype": "fp32"} and found["communication_data_type"] == "fp32"
    own = {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}
    json_file.write_text(json.dumps(own | {"zero_optimization": {"stage": 2}}))
    assert {key: engine_config(plan(json_file))[key] for key in own} == own
    for changes in ({"stage": 0}, {"stage": 2, "precision": "fp32"}):
        assert not {"data_types", "communication_data_type"} & engine_config(plan(**changes)).keys()


def test_the_stage_that_nobody_chose_sums_in_fp32() -> None:
    assert engine_config(plan())["zero_optimization"]["stage"] == 1
    assert engine_config(plan(precision="fp32"))["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize(
    ("content", "changes", "words"),
    [
        ({"train_batch_size": 64}, {}, ["train_batch_size=64", "train.global_batch_size=32"]),
        ({"gradient_clipping": 5.0}, {}, ["gradient_clipping=5.0", "optim.clip_norm=1.0"]),
        ({"bf16": {"enabled": False}}, {}, ["bf16.enabled", "train.precision=bf16"]),
        ({"zero_optimization": {"stage": 3}}, {"stage": 1}, ["stage=3", "deepspeed.stage=1"]),
        ({"optimizer": {"type": "Adam"}}, {}, ["optimizer", "section optim"]),
        ({"activation_checkpointing": {}}, {}, ["activation_checkpointing", "model.activation_checkpointing"]),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            {"stage": 0},
            ["zero_optimization.offload_optimizer", "deepspeed.stage=0"],
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            {},
            ["zero_optimization.offload_param", "zero_optimization.stage=2"],
        ),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": True}}, {}, ["offload_optimizer=True", "device"]),
        ({"bf16": True}, {}, ["wanted an object"]),
    ],
)
def test_a_contradiction_names_both_places(json_file: Path, content: dict, changes: dict, words: list[str]) -> None:
    json_file.write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        engine_config(plan(json_file, **changes))
    for word in [*words, str(json_file) if content else ""]:
        assert word in str(caught.value)


@pytest.mark.parametrize("section", ["offload_optimizer", "offload_param"])
def test_nvme_is_refused_with_the_reason(json_file: Path, section: str) -> None:
    json_file.write_text(json.dumps({"zero_optimization": {"stage": 3, section: {"device": "nvme"}}}))
    with pytest.raises(ValueError, match=f"{section}.device=nvme.*could not resume from a checkpoint"):
        engine_config(plan(json_file))


def test_an_offload_to_nowhere_is_none(json_file: Path) -> None:
    json_file.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}}))
    assert engine_config(plan(json_file))["zero_optimization"] == {"stage": 3}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")), ids=lambda file: file.name)
def test_the_files_that_come_with_the_project_are_taken(file: Path) -> None:
    stage = int(file.stem.removeprefix("zero")[0])
    assert engine_config(plan(file))["zero_optimization"]["stage"] == stage


def test_a_missing_or_broken_file_is_named(tmp_path: Path, json_file: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        engine_config(plan(tmp_path / "absent.json"))
    json_file.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        engine_config(plan(json_file))


def test_auto_is_fp32_on_a_cpu_and_bf16_on_a_gpu() -> None:
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    assert resolve_precision("auto", torch.device("cuda")) == "bf16"


def test_fp16_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"train.precision=fp16 is not supported.*bf16.*fp32"):
        load("debug", ["train.precision=fp16"])


def test_the_schedule_is_linear_then_half_a_cosine() -> None:
    schedule = Schedule.of(base_lr=1e-3, min_lr=1e-4, warmup_share=0.1, steps=100, global_batch_size=512)
    assert schedule.peak == 2e-3
    assert schedule(5) == pytest.approx(1e-3)
    assert schedule(10) == pytest.approx(2e-3)
    assert schedule(55) == pytest.approx((2e-3 + 2e-4) / 2)
    assert schedule(100) == pytest.approx(2e-4)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (2, 0.5), (20, 0.2), (800, 0.05)])
def test_no_update_has_the_rate_0_and_all_but_the_last_are_the_cosines(steps: int, warmup: float) -> None:
    schedule = Schedule.of(1e-3, 0.0, warmup, steps, 256)
    rates = [schedule(step) for step in range(1, steps + 1)]
    assert min(rates) > 0 and rates[-1] == min(rates[schedule.warmup_steps - 1 if warmup else 0 :])
    first = schedule.warmup_steps + 1
    for step in range(first, steps):
        done = (step - schedule.warmup_steps) / (steps - schedule.warmup_steps)
        assert rates[step - 1] == schedule.peak * 0.5 * (1 + math.cos(math.pi * done)), "to the bit"


def test_a_rate_that_would_rise_to_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim.min_lr=0.002 is above optim.base_lr=0.001"):
        OptimConfig(base_lr=1e-3, min_lr=2e-3)


def test_biases_norms_and_tokens_do_not_decay() -> None:
    module = nn.Module()
    module.linear = nn.Linear(3, 5)
    module.norm = nn.LayerNorm(5)
    module.token = nn.Parameter(torch.zeros(1, 1, 5))
    module.log_scale = nn.Parameter(torch.zeros(1))
    decay, plain = parameter_groups(module, 0.05)
    assert [tuple(p.shape) for p in decay["params"]] == [(5, 3)]
    assert len(plain["params"]) == 5 and plain["weight_decay"] == 0


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("said_in", ["deepspeed.stage", "deepspeed.config"])
def test_compiling_is_refused_at_stage_3_wherever_it_is_said(said_in: str, stage: int, json_file: Path) -> None:
    json_file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    said = f"{said_in}={stage}" if said_in == "deepspeed.stage" else f"{said_in}={json_file}"
    config = load(CONFIGS.parent / "debug.yaml", ["model.compile=true", said])
    if stage < 3:
        check(config, plan_pretraining(config, find_process()))
        return
    with pytest.raises(ValueError, match=r"model\.compile=true does not go with") as refusal:
        check(config, plan_pretraining(config, find_process()))
    assert said in str(refusal.value)
