"""The joint step on real engines: one curve at any world size, accumulation and ZeRO stage; state moves freely."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from launch import answers

WORKER = str(Path(__file__).with_name("step_worker.py"))
STEPS, SAVED = 8, 4
REFUSED, LAST = 3, 6  # of the runs with a step that is refused: the one before the checkpoint
# what a step is refused for, and by whom: the host, or (fused, as on a GPU) the device
LAYOUTS = [  # stage 3 last: see below
    (0, "fp32", False), (0, "fp32", True), (0, "bf16", True), (1, "bf16", True), (2, "fp32", False), (2, "bf16", True),
    (3, "fp32", False), (3, "bf16", True),
]  # fmt: skip
POISONED: dict[str, dict] = {
    f"{poison}, stage {stage}, {precision}{', fused' if fused else ''}": {
        "model": "less",
        "poison": poison,
        "stage": stage,
        "precision": precision,
        "fused": fused,
    }
    for stage, precision, fused in LAYOUTS
    for poison in ("loss", "gradient", "spike")
}
REFUSALS = {"loss": "loss not finite", "gradient": "gradient not finite", "spike": "spike"}


def run_cases(folder: Path, world_size: int, cases: dict[str, dict]) -> dict[str, dict]:
    """Run cases in `world_size` processes; each saves at SAVED unless it starts from another's checkpoint."""
    for name, case in cases.items():
        case.setdefault("steps", STEPS)
        if "load" in case:
            case["load"] = str(folder / case["load"])
        else:
            case.update(save_at=SAVED, save=str(folder / name))
    return answers(WORKER, folder, world_size, cases)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("step")
    fp32, bf16 = {"precision": "fp32"}, {"precision": "bf16"}
    alone = {
        "base": {"stage": 0, **fp32},
        "accumulated": {"stage": 0, "micro": 4, **fp32},
        "groups of 4": {"stage": 0, "contrastive_batch": 4, **fp32},
        "bf16 stage 0": {"stage": 0, **bf16},
        "bf16 stage 1": {"stage": 1, **bf16},
        "again": {"stage": 0, "load": "base", **fp32},
        "bf16 stage 0 again": {"stage": 0, "load": "bf16 stage 0", **bf16},
        "fused": {"stage": 0, "fused": True, **fp32},
    }
    for name, case in POISONED.items():
        alone[name] = case | {"micro": 4, "poison_at": REFUSED, "steps": LAST}
        alone[f"{name}, again"] = case | {"micro": 4, "load": name, "steps": LAST}
    two = {
        "2 stage 0": {"stage": 0, **fp32},
        "2 stage 1": {"stage": 1, **fp32},
        "2 stage 2 accumulated": {"stage": 2, "micro": 2, **fp32},
        "2 stage 2 groups of 4": {"stage": 2, "micro": 2, "contrastive_batch": 4, **fp32},
        "2 stage 2 again": {"stage": 2, "micro": 2, "load": "2 stage 2 accumulated", **fp32},
        # ZeRO-3 last: it replaces torch's linear for the whole process by one that rounds differently
        "2 stage 3 accumulated": {"stage": 3, "micro": 2, **fp32},
        "2 stage 3 bf16": {"stage": 3, **bf16},
        "2 stage 3 again": {"stage": 3, "micro": 2, "load": "2 stage 3 accumulated", **fp32},
        "2 stage 3 bf16 again": {"stage": 3, "load": "2 stage 3 bf16", **bf16},
        "3 from 1 process": {"stage": 3, "load": "base", **fp32},
    }
    found = run_cases(folder, 1, alone) | run_cases(folder, 2, two)
    later = {
        "0 from 3": {"stage": 0, "load": "2 stage 3 accumulated", **fp32},
        "alone 3 from 2": {"stage": 3, "load": "2 stage 2 accumulated", **fp32},
    }
    found |= run_cases(folder, 1, later)
    return found | run_cases(folder, 4, {"4 stage 1 from 2": {"stage": 1, "load": "2 stage 2 accumulated", **fp32}})


def apart(results: dict[str, dict], one: str, other: str) -> float:
    """Largest difference of two curves, over the steps that both made."""
    a, b = results[one]["curve"], results[other]["curve"]
    length = min(len(a), len(b))
    return max(abs(x - y) for row, line in zip(a[-length:], b[-length:], strict=True) for x, y in zip(row, line))


@pytest.mark.parametrize(
    "case", ["accumulated", "2 stage 0", "2 stage 1", "2 stage 2 accumulated", "2 stage 3 accumulated"]
)
def test_the_curve_is_that_of_one_process(results: dict[str, dict], case: str) -> None:
    assert apart(results, "base", case) < 1e-4


def test_groups_of_negatives_do_not_depend_on_the_layout(results: dict[str, dict]) -> None:
    assert apart(results, "groups of 4", "2 stage 2 groups of 4") < 1e-4
    assert apart(results, "groups of 4", "base") > 1e-2, "fewer negatives are another loss"


def test_the_loss_falls(results: dict[str, dict]) -> None:
    curve = results["base"]["curve"]
    assert curve[-1][0] < 0.75 * curve[0][0]


def test_low_precision_stage_0_makes_full_first_steps(results: dict[str, dict]) -> None:
    # without the cleared moments these differ by 0.1 after one step
    assert apart(results, "bf16 stage 0", "bf16 stage 1") < 2e-2


@pytest.mark.parametrize("case", POISONED)
def test_a_refused_update_leaves_all_alone_and_is_told_why(results: dict[str, dict], case: str) -> None:
    """Weights, moments, and Adam's own count, which corrects its moments' bias."""
    found, poison = results[case], POISONED[case]["poison"]
    assert found["refusals"] == [None] * REFUSED + [REFUSALS[poison]] + [None] * (LAST - SAVED)
    assert found["refused_untouched"] and found["updates"] == [LAST - 1]
    loss, *_, norm = found["curve"][REFUSED]
    assert math.isnan(loss) == (poison == "loss") and (norm is None) == (poison != "spike")
    assert all(math.isfinite(row[0]) for row in found["curve"][SAVED:])


@pytest.mark.parametrize("case", POISONED)
def test_going_on_after_a_refused_update_is_exact(results: dict[str, dict], case: str) -> None:
    again = results[f"{case}, again"]
    assert again["curve"] == results[case]["curve"][SAVED:] and again["state"] == results[case]["state"]
    assert again["updates"] == [LAST - 1]


def test_the_fused_kernel_is_the_same_adam(results: dict[str, dict]) -> None:
    assert 0 < apart(results, "base", "fused") < 1e-5


@pytest.mark.parametrize(
    ("case", "origin"),
    [
        ("again", "base"),
        ("bf16 stage 0 again", "bf16 stage 0"),
        ("2 stage 2 again", "2 stage 2 accumulated"),
        ("2 stage 3 again", "2 stage 3 accumulated"),
        ("2 stage 3 bf16 again", "2 stage 3 bf16"),
    ],
)
def test_going_on_is_exact_to_the_last_bit(results: dict[str, dict], case: str, origin: str) -> None:
    assert len(results[case]["curve"]) == STEPS - SAVED
    assert results[case]["curve"] == results[origin]["curve"][SAVED:]
    assert results[case]["state"] == results[origin]["state"]


@pytest.mark.parametrize(
    ("case", "origin"),
    [
        ("3 from 1 process", "base"),
        ("0 from 3", "2 stage 3 accumulated"),
        ("alone 3 from 2", "2 stage 2 accumulated"),
        ("4 stage 1 from 2", "2 stage 2 accumulated"),
    ],
)
def test_a_checkpoint_moves_between_stages_and_world_sizes(results: dict[str, dict], case: str, origin: str) -> None:
    assert apart(results, case, origin) < 1e-5
