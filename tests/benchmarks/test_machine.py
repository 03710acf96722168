"""CPU seconds of processes, by those that the system tells of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from tgm_scale.benchmarks.machine import cpu_seconds

BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"


def test_the_seconds_of_a_process_have_those_of_threads_that_ended() -> None:
    def busy() -> None:
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            pass

    before = cpu_seconds([os.getpid()])
    thread = threading.Thread(target=busy)
    thread.start()
    thread.join()
    assert 0.2 <= cpu_seconds([os.getpid()]) - before < 1
    assert abs(cpu_seconds([os.getpid()]) - time.process_time()) < 0.05


def test_those_of_others_are_added() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"done\n"
        both, own = cpu_seconds([os.getpid(), other.pid]), cpu_seconds([os.getpid()])
        assert 0.3 <= both - own < 1
        other.communicate(b"\n")
