"""Signals that ask a run to stop are reported when they come: a step may take minutes more."""

from __future__ import annotations

import subprocess
import sys

import pytest

SENT = """
import os, signal
from tgm_scale.training.preemption import StopRequest
stop = StopRequest(reports={reports})
for _ in range(2):
    os.kill(os.getpid(), signal.{name})
print(stop.asked(), stop.reason)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
@pytest.mark.parametrize("reports", [True, False])
def test_a_signal_is_reported_once_by_the_process_that_reports(name: str, reports: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SENT.format(name=name, reports=reports)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", name]
    assert done.stderr.count(f"{name}: stops with a checkpoint after this step or the next") == reports
    assert ("another Ctrl-C" in done.stderr) is (reports and name == "SIGINT")
