"""The contract that every line of the table of terms keeps, by real engines: see term_worker.py.

A term that is added to the table is tested here without a further line; with a plain formula in `term_worker.PLAIN` it
is compared with that, else with its own function of the whole batch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launch import run
from short_run import arguments

from tgm_scale.conversion.read import read
from tgm_scale.objectives.term import CAPTIONS
from tgm_scale.objectives.terms import TERMS
from tgm_scale.runs.metrics import read_metrics

WORKER = str(Path(__file__).with_name("term_worker.py"))
# each alone, and all together; but no run learns two masks
EVERY = [*TERMS, "+".join(name for name in TERMS if name != "adversary")]
COUPLED = [name for name in EVERY if any(CAPTIONS in TERMS[part].needs for part in name.split("+"))]
Results = dict[str, dict]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("terms")
    (folder / "cases.json").write_text(json.dumps({"terms": [], "folder": str(folder / "runs")}))
    found: Results = {}
    for world_size in (1, 2):
        run(world_size, [WORKER, str(folder / "cases.json"), str(folder / "out.json")])
        found |= json.loads((folder / "out.json").read_text())
    return found


def apart(one: dict, other: dict) -> float:
    """Largest difference of losses and gradient norms, relative to the first's."""
    pairs = [
        (a, b) for row, line in zip(one["curve"], other["curve"], strict=True) for a, b in zip(row, line, strict=True)
    ]
    return max(abs(a - b) / abs(a) for a, b in pairs)


@pytest.mark.parametrize("way", ["base", "accumulated", "stage 2"])
@pytest.mark.parametrize("name", EVERY)
def test_loss_and_gradient_are_those_of_the_plain_formula_on_the_whole_batch(
    results: Results, name: str, way: str
) -> None:
    found = results[f"{name}: {way}"]
    # float32 sums in another order: 1.1e-5 of the adversary's gradient with AVX-512, below 1e-5 with AVX2
    assert found["loss apart"] < 1e-5 and 0 < found["gradient apart"] < 3e-5


@pytest.mark.parametrize("name", COUPLED)
def test_groups_of_negatives_are_those_of_the_plain_formula(results: Results, name: str) -> None:
    found = results[f"{name}: groups"]
    assert found["loss apart"] < 1e-5 and 0 < found["gradient apart"] < 1e-5
    assert apart(found, results[f"{name}: base"]) > 1e-4, "fewer negatives are another loss"
    assert apart(found, results[f"{name}: groups, two processes"]) < 1e-4


@pytest.mark.parametrize("way", ["accumulated", "stage 2", "stage 3"])
@pytest.mark.parametrize("name", EVERY)
def test_how_the_batch_is_split_changes_nothing(results: Results, name: str, way: str) -> None:
    base, found = results[f"{name}: base"], results[f"{name}: {way}"]
    assert apart(base, found) < 1e-4
    assert found["kept"] == base["kept"], "what is kept is of the data alone"
    for row, line in zip(base["figures"], found["figures"], strict=True):
        assert row.keys() == line.keys() and row == pytest.approx(line, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_clips_of_weight_0_have_no_influence(results: Results, name: str) -> None:
    base, garbage = results[f"{name}: base"], results[f"{name}: garbage"]
    assert garbage["curve"] == base["curve"] and garbage["kept"] == base["kept"]


@pytest.mark.parametrize("name", EVERY)
def test_going_on_is_exact_to_the_last_bit(results: Results, name: str) -> None:
    base, again = results[f"{name}: base"], results[f"{name}: again"]
    assert len(again["curve"]) == 2
    assert again["curve"] == base["curve"][-2:] and again["kept"] == base["kept"]


def test_a_run_of_many_terms_resumes_to_the_bit_and_gives_its_model_without_them(config: Path, tmp_path: Path) -> None:
    """With the frozen towers of the run: relevance and features of one pass, and the queue beside the checkpoint."""
    terms = "{pixels: 1, differences: 0.5, align: 0.5, predict: 1, sigmoid: 0.1, nearest: 0.3}"
    settings = [f"objective.terms={terms}", "guidance.towers=small", "guidance.scorer=raw", "objective.queue=20"]
    settings += ["masking.recipe=text_guided", "train.steps=4", "checkpoint.every=2"]
    folder = tmp_path / "run"
    said = run(1, arguments(config, *settings)).stdout
    assert "objective 1 pixels + 0.5 differences + 0.5 align + 1 predict + 0.1 sigmoid + 0.3 nearest" in said
    rows = read_metrics(folder)
    columns = [name for name in rows[0] if name.startswith(("loss", "sigmoid", "nearest", "grad_norm"))]
    assert len(columns) == 13 and rows[0]["loss_contrastive"] is None
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    run(1, arguments(config, *settings))
    assert [[row[name] for name in columns] for row in read_metrics(folder)] == [
        [row[name] for name in columns] for row in rows
    ]
    (folder / "terms-00000002.safetensors").unlink()
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    refused = run(1, arguments(config, *settings), code=2).stderr
    assert "terms-00000002.safetensors: missing: it has what nearest keeps between steps" in refused
    found = read(folder)
    assert found.kind == "pretraining" and not [name for name in found.state if name.startswith("terms")]
    assert "left out terms.align.* (2 tensors)" in "\n".join(found.notes)
