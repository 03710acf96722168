"""What a run says while it goes is said once, whenever it was killed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tgm_scale.runs.metrics import Metrics, ProgressLine, read_metrics
from tgm_scale.training.reporting import concluded


@pytest.mark.parametrize("going_on", [0, 2])
def test_tensorboard_has_each_step_once_after_a_kill(tmp_path: Path, going_on: int) -> None:
    """Killed after step 3; the last checkpoint is of step 2, or there is none yet."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = Metrics(tmp_path, 0, tensorboard=True)
    for step in (1, 2, 3):
        killed.write({"step": step, "loss": 1.0})
    killed.flush()
    again = Metrics(tmp_path, going_on, tensorboard=True)
    for step in range(going_on + 1, 5):
        again.write({"step": step, "loss": 2.0})
    again.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    rows = [(event.step, event.value) for event in board.Scalars("loss")]
    assert rows == [(step, 1.0 if step <= going_on else 2.0) for step in (1, 2, 3, 4)]
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == rows
    killed.close()


def test_the_end_of_a_run_counts_the_updates_that_were_skipped() -> None:
    last = {"step": 5, "loss": 1.0, "loss_reconstruction": 1.0, "loss_contrastive": None, "skipped_samples": 0}
    assert concluded(3, 7.0, last, 5).endswith("rec 1.0000") and "2 of 5 updates skipped" in concluded(3, 7.0, last, 3)


def test_progress_goes_where_the_errors_of_its_time_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to what they went to as the module was imported, which may be closed since: in a notebook, in a test."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    ProgressLine(2, 1).say("told")
    assert stream.getvalue() == "told\n"
