"""The ordered pool: order, exceptions as results, and inputs that kill their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tgm_scale.runtime.command import INTERRUPTED
from tgm_scale.runtime.processes import Crashed, OrderedPool


def work(number, kind="plain"):
    if kind == "slow":
        time.sleep(0.3)
    if kind == "refused":
        raise ValueError(f"{number} refused")
    if kind == "deadly":
        os.kill(os.getpid(), signal.SIGSEGV)
    return number * number


def test_results_come_in_order_and_exceptions_with_them():
    kinds = {0: "slow", 3: "refused", 7: "slow"}
    with OrderedPool(2) as pool:
        results = list(pool.map(work, ((i, kinds.get(i, "plain")) for i in range(20))))
    assert isinstance(results[3], ValueError) and str(results[3]) == "3 refused"
    assert [result for i, result in enumerate(results) if i != 3] == [i * i for i in range(20) if i != 3]


def test_an_input_that_kills_its_process_costs_itself_only():
    with OrderedPool(2) as pool:
        results = list(pool.map(work, ((i, "deadly" if i in (2, 9) else "plain") for i in range(12))))
    assert [isinstance(result, Crashed) for result in results] == [i in (2, 9) for i in range(12)]
    assert [result for result in results if isinstance(result, int)] == [i * i for i in range(12) if i not in (2, 9)]


def test_an_input_that_comes_after_the_pool_broke_is_worked_on_all_the_same():
    def inputs():
        yield 0, "deadly"
        time.sleep(2)  # the pool has noticed by then
        yield 1, "plain"

    with OrderedPool(2) as pool:
        first, second = pool.map(work, inputs())
    assert isinstance(first, Crashed) and second == 1


def test_inputs_are_taken_as_results_are_used():
    """A plan of millions of clips must not be queued at once."""
    taken = []
    with OrderedPool(1) as pool:
        results = pool.map(work, ((taken.append(i) or i,) for i in range(100)))
        assert next(results) == 0 and len(taken) < 10


PATIENT = """
import os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
rank = int(os.fork() == 0)
store = dist.FileStore(sys.argv[1], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=1))
collectives = HostCollectives(ProcessInfo(rank, 2, 0, torch.device("cpu")), 60.0)
time.sleep(0 if rank else 2.5)
collectives.barrier()
if not rank:
    assert os.wait()[1] == 0
"""


def test_ranks_wait_at_a_barrier_longer_than_their_group_does(tmp_path):
    subprocess.run([sys.executable, "-c", PATIENT, str(tmp_path / "store")], check=True, timeout=60)


_STARTS_A_RUN = """
import sys, time
from pathlib import Path
from tgm_scale.runtime.command import exit_code
from tgm_scale.runtime.processes import LocalRun

def run():
    with LocalRun([sys.executable, "-c", "import time; time.sleep(600)"], 2, Path(sys.argv[1])) as life:
        print(*(process.pid for process in life.ranks), flush=True)
        time.sleep(600)

sys.exit(exit_code("starts a run", run))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_is_stopped_leaves_no_process_of_its_run(tmp_path: Path, number: signal.Signals) -> None:
    arguments = [sys.executable, "-c", _STARTS_A_RUN, str(tmp_path / "log")]
    started = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pids = started.stdout.readline().split()
    assert len(pids) == 2 and all(Path("/proc", pid).exists() for pid in pids)
    started.send_signal(number)
    assert started.wait(30) == INTERRUPTED
    assert not any(Path("/proc", pid).exists() for pid in pids)
