"""What is forked behaves as what a shell starts: its code, output, environment and folder are its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import starts
from starts import Started, wait_for_all

TELLS = """
import json, os, sys
print(json.dumps([sys.argv, os.environ["NAME"], os.getcwd(), os.getpid(), sys.path[0], "torch" in sys.modules]))
print("aside", file=sys.stderr)
os.environ["NAME"] = "another"
sys.exit(7)
"""
SLEEPS = "import time\ntime.sleep(100)\n"


def script(folder: Path, name: str, code: str) -> str:
    file = folder / name
    file.write_text(code)
    return str(file)


def test_arguments_environment_folder_output_and_code_are_its_own(tmp_path: Path) -> None:
    file = script(tmp_path, "tells.py", TELLS)
    both = [Started([file, name], {"NAME": name}, tmp_path) for name in ("one", "two")]
    assert [one.wait(60) for one in both] == [7, 7]
    for one, name in zip(both, ("one", "two")):
        said, error = one.communicate()
        assert json.loads(said) == [[file, name], name, str(tmp_path), one.pid, str(tmp_path), True]
        assert error == "aside\n"
    together = Started([file], {"NAME": "three"}, tmp_path, into_one=True)
    assert sorted(together.communicate(60)[0].splitlines())[1] == "aside" and both[0].pid != together.pid


def test_a_failure_has_its_traceback_and_a_signal_its_number(tmp_path: Path) -> None:
    failing = Started([script(tmp_path, "fails.py", "1 / 0\n")], os.environ, tmp_path)
    assert failing.wait(60) == 1 and "ZeroDivisionError" in failing.communicate()[1]
    process = Started([script(tmp_path, "sleeps.py", SLEEPS)], os.environ, tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM and not Path(f"/proc/{process.pid}").exists()


def test_ranks_end_with_the_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "AFTER_A_FAILURE", 0.2)
    waiting = Started([script(tmp_path, "sleeps.py", SLEEPS)], os.environ, tmp_path)
    failing = Started([script(tmp_path, "fails.py", "raise SystemExit(3)\n")], os.environ, tmp_path)
    assert wait_for_all([waiting, failing], 60) == 3 and waiting.returncode == -signal.SIGKILL
    waiting = Started([script(tmp_path, "sleeps.py", SLEEPS)], os.environ, tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        wait_for_all([waiting], 0.2)
    assert waiting.returncode == -signal.SIGKILL
