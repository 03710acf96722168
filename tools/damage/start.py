"""A start of the console command in a fork of this process, with its output in a file and a limit of time."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

OUTPUT = "output.txt"
LIMIT = 90.0  # seconds; a whole start takes 0.3. Whoever finds a damaged file in owner/ watches it for 15
HANGS = -999
_READ_ANYTHING = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: by which root is refused nothing


def start(folder: Path, commands: Sequence[Sequence[str]], then: Callable[[], None] | None = None) -> int:
    """The exit code of the last of the commands, which run one after another in `folder`; HANGS where they took too
    long. `then` runs in the same process if that code is 0. What they say is in FOLDER/output.txt, with the codes."""
    child = os.fork()
    if child == 0:
        _run(folder, commands, then)
    end = time.monotonic() + LIMIT
    while not (waited := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return HANGS
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(waited[1])


def _run(folder: Path, commands: Sequence[Sequence[str]], then: Callable[[], None] | None) -> None:
    code = 1
    try:
        os.chdir(folder)
        os.environ.update(HOME=str(folder / "home"), XDG_CACHE_HOME=str(folder / "home"))
        sink = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        _be_refused()
        from tgm_scale import cli

        for command in commands:
            code = cli.main(command)
            print(f"exit code of {command[0]}: {code}", flush=True)
        if then is not None and code == 0:
            then()
    except BaseException:  # as an interpreter does it
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_refused() -> None:
    """Let root be refused what a file's mode refuses, as its owner is who is not root."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; of capabilities 0 to 31, then of the others
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for capability in _READ_ANYTHING:
        for each in range(3):
            sets[each] &= ~(1 << capability)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
