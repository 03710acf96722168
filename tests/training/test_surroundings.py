"""A run in odd surroundings: no HOME, few open files, a folder whose name has everything, signals by the hundred."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path

from launch import ROOT, command, environment
from short_run import arguments, rank_file, start, wait_for_steps

from tgm_scale.checkpoints import folders
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runs.status import status


def test_a_run_without_home_and_with_few_files_answers_a_hundred_signals(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / """a b'c"d$HOME&;日本"""

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    process = subprocess.Popen(
        command(1, *arguments(config, f"run.dir={folder}", "train.steps=100000", "checkpoint.every=100000")),
        env={name: value for name, value in environment().items() if name != "HOME"},
        cwd=ROOT,
        preexec_fn=few_files,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_steps(folder, 3)
    for _ in range(100):
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85 and "Traceback" not in output, output
    assert folders.steps_in(folder / "checkpoints") == [len(read_metrics(folder))]
    assert "日本" in status(str(folder))


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(config: Path) -> None:
    folder = config.parent / "run"
    process = start(config, 2, "train.steps=100000", "checkpoint.every=100000")
    wait_for_steps(folder, 3)
    os.kill(rank_file(folder, 1)["pid"], signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, "torchrun's, for our 85"
    steps = len(read_metrics(folder))
    assert folders.steps_in(folder / "checkpoints") == [steps] and f"stopped at step {steps} by" in output, output
