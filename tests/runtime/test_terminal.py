"""Commands whose output nobody reads: real processes, a closed pipe and a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgm_scale import cli
from tgm_scale.runtime.terminal import escaped

ROOT = Path(__file__).parents[2]
PRINTS = """
import sys
from tgm_scale.runtime.terminal import ignore_output_errors
ignore_output_errors()
for _ in range(3):
    print("x" * 100_000, flush=True)
    print("warning", file=sys.stderr)
open(sys.argv[1], "w").write("went on")
"""


@pytest.mark.parametrize("output", ["closed pipe", "full disk"])
def test_what_cannot_be_printed_stops_nothing(tmp_path: Path, output: str) -> None:
    if output == "closed pipe":
        reader, stream = os.pipe()
        os.close(reader)
    else:
        stream = os.open("/dev/full", os.O_WRONLY)
    arguments = [sys.executable, "-c", PRINTS, str(tmp_path / "file")]
    done = subprocess.run(arguments, stdout=stream, stderr=stream, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})
    os.close(stream)
    assert (tmp_path / "file").read_text() == "went on"
    assert done.returncode in (0, 120), "120: the interpreter's own last flush"


def test_a_command_into_a_pipe_that_is_closed_ends_well() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "tgm_scale", "config", "--config", "configs/debug.yaml"]
    done = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_text_of_others_is_escaped_and_the_languages_of_the_world_are_not() -> None:
    hostile = "a\x1b[2Jb\x07\r\x9b31m\u2028\u202e\ud83d\n\tend"
    assert escaped(hostile) == r"a\x1b[2Jb\x07\x0d\x9b31m\u2028\u202e\ud83d" + "\n\tend"
    assert escaped("a\nb", keep="") == r"a\x0ab"
    for fine in ("caf\u00e9 \u6f22\u5b57\u3000\u0639\u0631\u0628\u064a", "\U0001f469\u200d\U0001f680 \xa0"):
        assert escaped(fine) == fine


def test_a_message_with_a_name_of_others_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "no\x1b[31mrun"]) == 2
    assert r"no\x1b[31mrun" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_was_closed_before_the_start_is_nowhere(tmp_path: Path, closed: int) -> None:
    line = f'exec "$0" -c "$1" "$2" {closed}>&-'
    arguments = ["bash", "-c", line, sys.executable, PRINTS, str(tmp_path / "file")]
    done = subprocess.run(arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True)
    assert done.returncode == 0 and (tmp_path / "file").read_text() == "went on"


def test_a_letter_that_a_stream_cannot_have_is_its_escape() -> None:
    prints = "from tgm_scale.runtime.terminal import ignore_output_errors as go; go(); print('caf\u00e9')"
    environment = {**os.environ, "PYTHONPATH": ".", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", prints], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9\n")
