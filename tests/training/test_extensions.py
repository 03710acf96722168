"""A build of DeepSpeed's Adam that was killed leaves a lock: the next start removes or names it, and never hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from launch import ROOT, environment

from tgm_scale.engine.extensions import BUILD_SECONDS, clear_lock, left_lock

BUILD = """
import torch
from tgm_scale.engine.extensions import load_cpu_adam, prepare_deepspeed
prepare_deepspeed(torch.device("cpu"))
load_cpu_adam(verbose=True)
"""
Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process that builds, in a folder of its own; ended with its compilers at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def build() -> subprocess.Popen[str]:
        variables = environment() | {"TORCH_EXTENSIONS_DIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", BUILD],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        return started[-1]

    yield build
    for process in started:
        kill(process, tmp_path)


def kill(process: subprocess.Popen[str], folder: Path) -> None:
    """It and its compilers, which ninja puts into groups of their own."""
    process.kill()
    process.wait()
    for other in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if Path(os.readlink(other / "cwd")).is_relative_to(folder):
                os.kill(int(other.name), signal.SIGKILL)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_a_build_that_was_killed_does_not_hang_the_next_start(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "cpu_adam"
    first = start()
    wait_for((folder / "build.ninja").exists)
    assert (folder / "lock").exists() and left_lock(folder) is None, "it is being built"
    first.kill()
    first.wait()
    assert left_lock(folder) is None, "its compilers outlive it"
    kill(first, tmp_path)
    wait_for(lambda: left_lock(folder) == folder / "lock")
    second = start()
    assert second.stdout is not None
    assert "lock: left by a build on this host that was killed; removed" in second.stdout.readline()
    assert f"building DeepSpeed's Adam for CPUs in {folder}" in second.stdout.readline()
    wait_for((folder / "lock").exists)


def test_a_lock_that_another_host_may_hold_is_waited_for_until_it_is_too_old(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    assert left_lock(tmp_path) is None
    (tmp_path / "builder-elsewhere").touch()
    assert left_lock(tmp_path) is None
    old = time.time() - BUILD_SECONDS - 1
    os.utime(lock, (old, old))
    assert left_lock(tmp_path) == lock
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import sys; f = open({str(lock)!r}); print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    assert left_lock(tmp_path) is None, "a process of this host has it open"
    holder.communicate()
    clear_lock(lock)
    assert list(tmp_path.iterdir()) == [] and left_lock(tmp_path) is None


def test_a_run_names_an_old_lock_and_ends_with_code_2(tmp_path: Path) -> None:
    lock = tmp_path / "extensions" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (0, 0))
    given = [f"run.dir={tmp_path}/run", f"data.shards={tmp_path}/shards", "data.synthetic.clips=8"]
    given += ["deepspeed.config=configs/deepspeed/zero3_offload.json", "data.workers=0"]
    ended = subprocess.run(
        [sys.executable, "-m", "tgm_scale", "pretrain", "--config", "configs/debug.yaml", *given],
        env=environment() | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    assert ended.returncode == 2, ended.stderr
    assert f"{lock}: older than the 10 minutes" in ended.stderr and "preflight --clear-locks" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_deepspeed_is_imported_for_the_run_s_device_whatever_was_inherited() -> None:
    code = (
        "import torch; from tgm_scale.engine.extensions import prepare_deepspeed\n"
        "prepare_deepspeed(torch.device('cpu')); import deepspeed\n"
        "print(deepspeed.get_accelerator().device_name())"
    )
    environment = {**os.environ, "DS_ACCELERATOR": "cuda"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["cpu"], done.stderr
