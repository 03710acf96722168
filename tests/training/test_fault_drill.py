"""The short form of tools/fault_drill.py: kills at random moments of one run of two processes leave no trace."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from launch import run
from short_run import MODEL

from tgm_scale.runs.metrics import read_metrics

KILLS, SEED = 3, 32  # with this seed the three kills meet three moments and three victims

CONFIG = (
    MODEL
    + """
optim: {{base_lr: 3e-2}}
train: {{steps: 38, global_batch_size: 8, micro_batch_size: 4}}
deepspeed: {{stage: 2}}
log: {{every: 100, tensorboard: false}}
"""
)


@pytest.mark.slow
def test_random_kills_leave_no_trace_in_the_curve(tmp_path: Path, shards: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(run=tmp_path / "unused", shards=shards))
    arguments = ["--config", str(config), "--dir", str(tmp_path / "drill"), "--kills", str(KILLS), "--seed", str(SEED)]
    said = run(1, ["tools/fault_drill.py", *arguments], anew=True).stdout
    assert "equal to the last bit" in said and "each once" in said, said
    kills = [json.loads(line) for line in (tmp_path / "drill" / "kills.jsonl").read_text().splitlines()]
    assert len({kill["moment"] for kill in kills}) == len({kill["victim"] for kill in kills}) == KILLS
    assert all(any(code == -9 for code in kill["exit_codes"]) for kill in kills), "each kill met a process"
    # the drill's own words, checked anew: the same clips at every step, and every step once
    rows, there = (read_metrics(tmp_path / "drill" / name) for name in ("drill", "undisturbed"))
    assert [row["data_digest"] for row in rows] == [row["data_digest"] for row in there]
    assert Counter(row["step"] for row in rows) == Counter(range(1, 39))
    assert [row["loss"] for row in rows] == [row["loss"] for row in there]
