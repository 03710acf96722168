"""What the tuner tries next, and that a trial survives what it starts."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tgm_scale.runtime.processes import LocalRun
from tgm_scale.tuning.search import Search
from tgm_scale.tuning.trials import Candidate, Trial

MICROS = [1, 2, 3, 4, 6, 8, 12, 24]


def tried(
    own: int, largest: int, speed: Any = lambda micro: float(micro), stages: tuple[int, ...] = (1,)
) -> list[str]:
    """The names in turn, where micro batches up to `largest` fit."""
    first = Candidate(stages[0], "none", own, False)
    ways = [Candidate(stage, "none", own, False) for stage in stages]
    outcomes: dict[str, dict[str, Any]] = {}
    search = Search(first, ways, MICROS, False, [{"compile": True}, {"workers": 2}], outcomes)
    names = []
    for candidate in search:
        names.append(candidate.name)
        fits = candidate.micro <= largest
        outcomes[candidate.name] = (
            {"outcome": "ran", "clips_per_second": speed(candidate.micro)} if fits else {"outcome": "out of memory"}
        )
    assert len(set(names)) == len(names)
    return names


def micros(names: list[str]) -> list[int]:
    return [int(name.partition("micro")[2]) for name in names if "workers" not in name and "compiled" not in name]


@pytest.mark.parametrize(
    ("own", "largest", "wanted"),
    [
        (4, 6, [4, 8, 6]),  # doubled, bisected
        (4, 24, [4, 8, 24]),
        (8, 3, [8, 4, 2, 3]),  # halved, bisected
        (2, 1, [2, 1]),
        (2, 0, [2, 1]),  # nothing fits
        (24, 24, [24]),
    ],
)
def test_the_micro_batch_is_doubled_and_bisected_to_what_fits(own: int, largest: int, wanted: list[int]) -> None:
    names = tried(own, largest)
    assert micros(names) == wanted
    best = max((micro for micro in wanted if micro <= largest), default=None)
    assert names[len(wanted) :] == (
        [] if best is None else [f"zero1-micro{best}-compiled", f"zero1-micro{best}-workers2"]
    )


def test_larger_micro_batches_that_are_slower_are_not_tried_and_stage_3_is_not_compiled() -> None:
    assert micros(tried(2, 24, lambda micro: 1 / micro)) == [2, 4]
    names = tried(24, 24, lambda micro: 1.0, (3,))
    assert names == ["zero3-micro24", "zero3-micro24-workers2"]


def test_offload_is_tried_with_what_changes_speed_alone_before_it_and_workers_after() -> None:
    first = Candidate(1, "none", 24, False)
    ways = [first, Candidate(1, "optimizer", 24, False)]
    outcomes: dict[str, dict[str, Any]] = {}
    for candidate in Search(first, ways, MICROS, False, [{"compile": True}, {"workers": 2}], outcomes):
        outcomes[candidate.name] = {"outcome": "ran", "clips_per_second": 2.0 if candidate.compile else 1.0}
    compiled = "zero1-micro24-compiled"
    assert list(outcomes) == ["zero1-micro24", compiled, "zero1-offload-optimizer-micro24", f"{compiled}-workers2"]


def trial(folder: Path, program: str, **settings: Any) -> dict[str, Any] | None:
    limit = settings.pop("limit", None)
    run = LocalRun([sys.executable, "-c", program], 2, folder / "output.log", limit=limit)
    return Trial(run, folder, 3, 1, **settings).outcome(lambda step: None)


def test_a_trial_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    worker = "import os, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; "
    worker += (
        f"time.sleep(600)']); open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(str(child.pid)); time.sleep(600)"
    )
    found = trial(tmp_path, worker, patience=3.0)
    assert found == {"outcome": "hung", "why": "no step in 3 s after step 0"}
    children = [int((tmp_path / rank).read_text()) for rank in "01"]
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").is_file() and Path(f"/proc/{pid}/cmdline").read_text() for pid in children):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert os.getpid() not in children


def test_a_trial_that_crashes_or_asks_for_too_much_is_a_row(tmp_path: Path) -> None:
    crashed = trial(tmp_path, "raise SystemExit('no such thing')")
    assert crashed is not None and crashed["outcome"] == "failed" and "no such thing" in crashed["why"]
    (tmp_path / "output.log").unlink()
    found = trial(tmp_path, "bytearray(3 << 30)", limit=1 << 30)
    assert found is not None and found["outcome"] == "out of memory" and "MemoryError" in found["why"]


def test_a_process_that_hangs_after_it_ran_out_of_memory_is_one_that_did(tmp_path: Path) -> None:
    program = "import sys, time; print('CUDA out of memory. Tried to allocate', flush=True); time.sleep(600)"
    found = trial(tmp_path, program, patience=3.0)
    assert found == {"outcome": "out of memory", "why": "CUDA out of memory. Tried to allocate"}


def test_a_trial_is_cut_off_when_the_time_is_over(tmp_path: Path) -> None:
    assert trial(tmp_path, "import time; time.sleep(600)", until=time.monotonic() + 1) is None


def test_a_hang_that_the_run_itself_ends_is_one(tmp_path: Path) -> None:
    found = trial(tmp_path, "import sys; sys.stdout.write('rank 1 waited 50 s at step 4 in clips\\n'); sys.exit(86)")
    assert found == {"outcome": "hung", "why": "rank 1 waited 50 s at step 4 in clips"}


def test_a_trial_whose_loss_is_not_finite_is_a_row_with_that_reason(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    rows = [
        {"step": step, "loss": None if step == 2 else 1.0, "not_finite": ["loss"] * (step == 2)} for step in (1, 2, 3)
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = trial(tmp_path, "import time; time.sleep(1)")
    assert found == {"outcome": "failed", "why": "step 2: the loss is not finite"}
