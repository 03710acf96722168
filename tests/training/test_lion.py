"""Lion: the plain formula at any stage and number of processes, its one moment in the checkpoint, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import answers, run

from tgm_scale import config as configuration
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.engine.plan import EnginePlan
from tgm_scale.planning.footprint import footprint
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.tensors import load_tensors

WORKER = str(Path(__file__).with_name("lion_worker.py"))
ALONE = {
    "0": {"stage": 0},
    "0 accumulated": {"stage": 0, "micro": 2},
    "0 refused": {"stage": 0, "refused_at": 1},
    "1": {"stage": 1},
    "2": {"stage": 2, "micro": 4},
    "0 bf16": {"stage": 0, "precision": "bf16"},
    "1 bf16": {"stage": 1, "precision": "bf16"},
}
TWO = {
    "two 0": {"stage": 0},
    "two 1": {"stage": 1},
    "two 2": {"stage": 2, "micro": 2},
    "two 2 bf16": {"stage": 2, "precision": "bf16"},
    # ZeRO-3 last: it replaces torch's linear for the whole process by one that rounds differently
    "two 3": {"stage": 3, "micro": 2},
}
GOES_ON = {name: {**case, "load": name} for name, case in (*ALONE.items(), *TWO.items())}
MOVES = {"two 2 from 0": {"stage": 2, "load": "0"}, "two 0 from 1": {"stage": 0, "load": "1"}}


def run_cases(folder: Path, world_size: int, cases: dict[str, dict]) -> dict[str, dict]:
    for name, case in cases.items():
        case |= {"load": str(folder / case["load"])} if "load" in case else {"save": str(folder / name)}
    return answers(WORKER, folder, world_size, cases)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("lion")
    again = {name: {f"{one}, again": {**GOES_ON[one]} for one in cases} for name, cases in (("1", ALONE), ("2", TWO))}
    alone = run_cases(folder, 1, {**{name: {**case} for name, case in ALONE.items()}, **again["1"]})
    in_order = {**{name: {**case} for name, case in TWO.items() if name != "two 3"}, **MOVES}
    in_order |= {name: case for name, case in again["2"].items() if "3" not in name}
    in_order |= {"two 3": {**TWO["two 3"]}, "two 3, again": again["2"]["two 3, again"]}
    return alone | run_cases(folder, 2, in_order)


@pytest.mark.parametrize("case", [name for name in (*ALONE, *TWO, *MOVES) if "bf16" not in name])
def test_each_step_is_that_of_the_plain_formula(results: dict[str, dict], case: str) -> None:
    """Weights and moment, after every step, whatever the layout. An update is 1e-3 of each weight."""
    assert results[case]["apart"] < 1e-6 and results[case]["parts"] == ["exp_avg", "weight"]


@pytest.mark.parametrize("case", [*ALONE, *TWO])
def test_going_on_is_exact_to_the_last_bit(results: dict[str, dict], case: str) -> None:
    again = results[f"{case}, again"]
    assert len(again["losses"]) == 3 and again["losses"] == results[case]["losses"][3:]
    assert again["state"] == results[case]["state"]


def test_bf16_learns_as_fp32_does(results: dict[str, dict]) -> None:
    for case in ("0 bf16", "1 bf16"):
        assert results[case]["losses"] == pytest.approx(results["0"]["losses"], rel=0.02)
    assert results["0 bf16"]["state"].keys() == results["0"]["state"].keys()


def plan(*overrides: str, device: str = "cpu") -> tuple[configuration.Config, ProcessInfo]:
    config = configuration.load("configs/debug.yaml", ["guidance.towers=null", "masking.recipe=tube",
        "objective.terms={pixels: 1}", *overrides])  # fmt: skip
    return config, ProcessInfo(0, 1, 0, torch.device(device))


def test_offload_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}')
    settings = [f"deepspeed.config={tmp_path / 'ds.json'}", "deepspeed.stage=2"]
    engine_plan: EnginePlan = plan_pretraining(*plan(*settings)).engine
    assert engine_plan.zero["stage"] == 2
    with pytest.raises(ValueError, match=r"offload_optimizer does not go with optim\.name=lion: .* optim\.name=adamw"):
        assert plan_pretraining(*plan(*settings, "optim.name=lion")).engine.zero
    with pytest.raises(ValueError, match=r"optim\.name"):
        plan("optim.name=muon")


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_plan_counts_one_moment(stage: int) -> None:
    kept = {}
    for name in ("adamw", "lion"):
        config, process = plan(f"optim.name={name}", f"deepspeed.stage={stage}")
        kept[name] = footprint(plan_pretraining(config, process), False).optimizer
    assert kept["lion"] / kept["adamw"] == pytest.approx(4 / 8 if stage == 0 else 8 / 12)


def test_a_run_by_the_command_resumes_to_the_bit_and_not_by_another_optimizer(tmp_path: Path, shards: Path) -> None:
    given = [f"data.shards={shards}", "data.synthetic=null", "data.frames=4", "data.stride=2", "data.size=32"]
    given += ["data.max_skipped_share=0.2", "guidance.towers=null", "masking.recipe=tube"]
    given += ["objective.terms={pixels: 1}", "train.steps=6", "checkpoint.every=3", "log.tensorboard=false"]
    given += ["optim.name=lion", "optim.base_lr=3e-3"]
    command = ["-m", "tgm_scale", "pretrain", "--config", "configs/debug.yaml", *given]
    run(1, [*command, f"run.dir={tmp_path / 'whole'}"])
    run(1, [*command, f"run.dir={tmp_path / 'run'}", "train.max_minutes=1e-9"], 85)
    message = run(1, [*command, f"run.dir={tmp_path / 'run'}", "optim.name=adamw"], 2).stderr
    assert "optim.name" in message
    run(1, [*command, f"run.dir={tmp_path / 'run'}"])
    whole, rows = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "run")
    assert len(rows) == 6 and [row["loss"] for row in rows] == [row["loss"] for row in whole]
    assert whole[-1]["loss"] < whole[0]["loss"]
    [file] = (tmp_path / "whole/checkpoints/step-00000006").glob("state-*.safetensors")
    assert {name.rpartition(".")[2] for name in load_tensors(file)} == {"weight", "exp_avg"}
