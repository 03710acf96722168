"""Finetuning meets spikes: refused, rolled back with its average, gone on with; and killed on the way."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launch import ROOT, environment, of_ranks, run
from starts import Started

from tgm_scale.checkpoints import ema
from tgm_scale.checkpoints.checkpoint import Progress, Reader
from tgm_scale.checkpoints.folders import latest
from tgm_scale.config.sections import FaultsConfig
from tgm_scale.contracts import Batch
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.runs.faults import FaultState
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.training.guard import Guard
from tgm_scale.training.preemption import REQUEUE_EXIT_CODE
from tgm_scale.training.task import StepResult

STEPS = 32
# the rate rises until the weights are thrown about, once there are losses enough to say what a spike is
CONFIG = """
run: {{dir: {run}}}
data: {{train: {shards}, test: {shards}, label: truth.objects.0.shape, frames: 4, stride: 2, size: 32, workers: 0,
  max_skipped_share: 0.9}}
finetune: {{rand_augment: null, mixup: 0, cutmix: 0, ema: 0.5, test_temporal_views: 1, test_spatial_views: 1}}
model: {{size: tiny}}
optim: {{base_lr: 3, warmup_share: 0.9}}
train: {{steps: {steps}, global_batch_size: 4, micro_batch_size: 4}}
faults: {{spike_factor: 1.0001, refused_before_rollback: 2, rollbacks: 20}}
checkpoint: {{every: 4, keep: 2}}
log: {{tensorboard: false}}
"""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "shards"
    make_corpus(folder, 40, SyntheticSpec(size=32, frames=8, seed=1, mode="one_mover"), clips_per_shard=10)
    return folder


def arguments(folder: Path, shards: Path, *overrides: str) -> list[str]:
    file = folder / "finetune.yaml"
    file.write_text(CONFIG.format(run=folder / "run", shards=shards, steps=STEPS))
    return ["-m", "tgm_scale", "finetune", "--config", str(file), *overrides]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "said").write_text(run(1, arguments(folder, labelled)).stdout)
    return folder / "run"


def test_spikes_are_refused_and_the_run_goes_on_without_their_samples(undisturbed: Path) -> None:
    said = (undisturbed.parent / "said").read_text()
    refused = [json.loads(line) for line in (undisturbed / "refused.jsonl").read_text().splitlines()]
    skipped = [json.loads(line) for line in (undisturbed / "skipped.jsonl").read_text().splitlines()]
    state, rows = FaultState.load(undisturbed)[0], read_metrics(undisturbed)
    assert said.count("rolling back from step") == state.rollbacks > 0
    assert {row["reason"] for row in refused} == {"spike"} and len(refused[0]["keys"]) == 4
    assert set(state.skip_list) <= {key for row in refused for key in row["keys"]}
    assert {row["key"] for row in skipped if row["reason"] == "skip_list"} <= set(state.skip_list) and skipped
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "a rollback leaves neither gaps nor doubles"
    assert (undisturbed / "results.json").is_file()


def killed_once(there: Callable[[], bool], arguments: list[str]) -> None:
    """A run that is killed as soon as something is there."""
    process = Started(arguments, environment(), ROOT)
    end = time.monotonic() + 120
    while not there():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9


def test_kills_during_and_after_a_rollback_leave_no_trace(tmp_path: Path, labelled: Path, undisturbed: Path) -> None:
    given, folder = arguments(tmp_path, labelled), tmp_path / "run"
    refused = folder / "refused.jsonl"
    killed_once(lambda: refused.is_file() and refused.stat().st_size > 0, given)  # refused, and not rolled back yet
    assert not (folder / "faults.json").exists()
    killed_once((folder / "faults.json").is_file, given)  # noted, and maybe not rolled back yet
    run(1, given)
    curves = [
        [(row["step"], row["loss"], row["data_digest"]) for row in read_metrics(of)] for of in (folder, undisturbed)
    ]
    assert curves[0] == curves[1]
    assert FaultState.load(folder)[0] == FaultState.load(undisturbed)[0]
    averages = [ema.read(of, STEPS) for of in (folder, undisturbed)]
    newest = [latest(of / "checkpoints") for of in (folder, undisturbed)]
    weights = [Reader(of).weights() for of in newest if of is not None]
    for one, other in (averages, weights):
        assert all(torch.equal(one[name], other[name]) for name in other), "also the average, which went back, too"


def test_after_too_many_rollbacks_it_stops(tmp_path: Path, labelled: Path) -> None:
    done = run(1, arguments(tmp_path, labelled, "faults.rollbacks=0"), code=4)
    assert "updates were refused up to step" in done.stderr and "optim.base_lr" in done.stderr


def test_refusals_before_a_checkpoint_count_for_a_start_after_it(tmp_path: Path) -> None:
    """A rollback comes at the same step, and takes the same samples, whether or not the run was killed before it."""
    collectives = HostCollectives(ProcessInfo(0, 1, 0, torch.device("cpu")))
    settings = FaultsConfig(refused_before_rollback=2)
    spike = StepResult(9.0, 1.0, "spike")

    def batch(key: str) -> list[Batch]:
        one = torch.ones(1)
        return [Batch(one, ["a"], [key], one, one, one, one, one)]

    progress = Progress(step=3, losses=[1.0])
    killed = Guard(settings, tmp_path, collectives)
    killed.begin(progress)
    assert not killed.note(progress, spike, batch("s/3")) and progress.refused == [["s/3"]]

    guard = Guard(settings, tmp_path, collectives)
    guard.begin(progress)  # as its checkpoint says
    progress.step = 4
    assert guard.note(progress, spike, batch("s/4"))
    guard.roll_back(progress, tmp_path / "step-00000003")
    assert FaultState.load(tmp_path)[0].skip_list == ["s/3", "s/4"]
    progress = Progress(step=3, losses=[1.0], refused=[["s/3"]])
    guard.begin(progress)
    assert progress.refused == [], "dealt with"
    assert not guard.note(progress, spike, batch("s/5"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_during_the_test_ends_the_run_to_be_started_again(tmp_path: Path, labelled: Path, ranks: int) -> None:
    """At a time limit of SLURM: the job is requeued on 85, and killed, not requeued, where the signal is not heard."""
    given = arguments(tmp_path, labelled, "train.steps=2", "finetune.test_temporal_views=400")
    processes = [Started(given, variables, ROOT) for variables in of_ranks(ranks)]
    folder, end = tmp_path / "run", time.monotonic() + 120
    while not (folder / "test").is_dir():
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    said = "".join(process.communicate(timeout=60)[1] for process in processes)
    assert {process.returncode for process in processes} == {REQUEUE_EXIT_CODE}
    assert "SIGUSR1: stops after the clips under way; the same command goes on from there" in said
    assert said.count("stopped during a pass over the clips, by SIGUSR1; the same command resumes") == 1
    assert not (folder / "results.json").exists()
    assert "stopped by SIGUSR1" in (folder / "ranks" / "00000").read_text()
    run(ranks, given)
    assert (folder / "results.json").is_file()
