"""profile.steps leaves a trace of those steps, of rank 0; and garbage is collected between steps, not in them."""

from __future__ import annotations

import gc
import gzip
import json
import weakref
from pathlib import Path

import pytest
from launch import run
from short_run import arguments

from tgm_scale import cli
from tgm_scale import config as configuration
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.runs.bottleneck import read_heartbeat
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.training import garbage

FINETUNE = """
run: {{dir: {folder}/run}}
data: {{train: {folder}/shards, test: {folder}/shards, label: truth.objects.0.shape, frames: 4, stride: 2, size: 32,
  workers: 0}}
finetune: {{rand_augment: null, test_temporal_views: 1, test_spatial_views: 1}}
model: {{size: tiny}}
train: {{steps: 3, global_batch_size: 4, micro_batch_size: 4}}
log: {{tensorboard: false}}
"""


def traced(run_folder: Path, name: str) -> set[str]:
    """The phases of steps in the one trace of a run."""
    [file] = (run_folder / "profile").iterdir()
    assert file.name == name
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert any("aten::" in event.get("name", "") for event in events)
    return {event["name"] for event in events if event.get("name", "").startswith("step ")}


def test_two_steps_of_rank_0_are_traced_and_no_loss_is_other(config: Path) -> None:
    folder = config.parent / "run"
    plain = run(2, arguments(config, "train.steps=4", f"run.dir={folder}-plain"))
    done = run(2, arguments(config, "train.steps=4", "profile.steps=2-3"))
    assert done.stderr.count("profile.steps: ") == 1 and "profile" not in plain.stderr
    assert "USDT" not in done.stderr + done.stdout and "Memory block" not in done.stderr, "torch's own words"
    phases = ("data", "guidance", "meeting", "update")
    assert traced(folder, "steps-00000002-00000003.json.gz") == {f"step {n}: {p}" for n in (2, 3) for p in phases}
    losses = [[row["loss"] for row in read_metrics(Path(f"{folder}{end}"))] for end in ("", "-plain")]
    assert losses[0] == losses[1] and not Path(f"{folder}-plain/profile").exists()


SLOW = """
import sys, time, torch
from tgm_scale import cli
from tgm_scale.checkpoints.saver import Saver

def late(of, name):
    real = getattr(of, name)
    setattr(of, name, lambda *given: (time.sleep(3), real(*given))[1])

late(torch.profiler.profile, "export_chrome_trace")
late(Saver, "begin")
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_trace_and_a_checkpoint_are_not_booked_as_waiting_for_clips(config: Path) -> None:
    """Each takes 3 s: the trace after step 3, the checkpoints after steps 5 and 6."""
    folder, script = config.parent / "run", config.parent / "slow.py"
    script.write_text(SLOW)
    run(1, [str(script), *arguments(config, "train.steps=6", "profile.steps=3")[2:]])
    rows = read_metrics(folder)
    assert max(row["data_seconds"] for row in rows[2:]) < 1
    assert rows[3]["step_seconds"] < 2 and rows[5]["step_seconds"] > 3
    told = read_heartbeat(folder / "ranks/00000")["seconds"]
    assert told["data"] < 2 and told["checkpoint"] > 5 and told["aside"] == 0


def test_a_run_that_ends_in_the_middle_of_them_leaves_what_there_is(tmp_path: Path) -> None:
    make_corpus(tmp_path / "shards", 12, SyntheticSpec(size=32, frames=8, seed=1, mode="one_mover"))
    file = tmp_path / "finetune.yaml"
    file.write_text(FINETUNE.format(folder=tmp_path))
    run(1, ["-m", "tgm_scale", "finetune", "--config", str(file), "profile.steps=1-3", "train.max_minutes=1e-9"], 85)
    assert "step 1: update" in traced(tmp_path / "run", "steps-00000001-00000001.json.gz")


@pytest.mark.parametrize("value", ["0", "3-2", "a-b", "-3", "1-2-3", "1.5", "'1 - 2'", "true", "[1, 2]", "١"])
def test_what_is_no_range_of_steps_is_refused(config: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"profile\.steps"):
        configuration.load(config, [f"profile.steps={value}"])


def test_steps_that_the_run_never_comes_to_are_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments(config)[2:], "train.steps=4", "profile.steps=4-5"]) == 2
    assert "profile.steps=4-5: the run has 4 steps" in capsys.readouterr().err


def test_garbage_is_collected_at_the_hundredth_step_alone() -> None:
    class Circle:
        pass

    with garbage.paused():
        one = Circle()
        one.itself = one  # type: ignore[attr-defined]
        left, one = weakref.ref(one), None  # type: ignore[assignment]
        assert not gc.isenabled() and gc.get_freeze_count() > 0
        garbage.collect_at(99)
        assert left() is not None
        garbage.collect_at(100)
        assert left() is None
    assert gc.isenabled() and gc.get_freeze_count() == 0
