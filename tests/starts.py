"""Processes that begin where a run's imports are done: a server makes them once, and forks itself for each start.

torch, DeepSpeed and transformers take 4 to 6 s of a core at each start, most of a short run's time. What is started is
a process of its own all the same: its arguments, environment, files, signals and exit code are as under `python ...`.
Only its imports, and the seed of its hashes, are those of all that are started here."""

from __future__ import annotations

import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

AFTER_A_FAILURE = 10.0  # seconds, for the other ranks to end


class Started:
    """A process that runs `python *arguments`; it has the methods of subprocess.Popen that tests call.

    into_one: what is printed as an error goes where all is printed; else it is kept apart."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], folder: Path, into_one: bool = False):
        self.args = list(arguments)
        self.returncode: int | None = None
        self._out = _unnamed_file()
        self._error = self._out if into_one else _unnamed_file()
        self._told, tells = os.pipe()
        request = json.dumps({"arguments": self.args, "env": dict(env), "folder": str(folder)}).encode()
        files = [self._out.fileno(), self._error.fileno(), tells]
        socket.send_fds(_server(), [request], files)
        os.close(tells)
        self.pid = _number(self._told)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = _number(self._told)
            os.close(self._told)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for the signal that ended it. Raises subprocess.TimeoutExpired."""
        if self.poll() is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits; what was printed, and what was printed as an error."""
        self.wait(timeout)
        return _text(self._out), _text(self._error)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def wait_for_all(ranks: Sequence[Started], seconds: float) -> int:
    """0 when all have ended well; else the code of one that did not: the others have a while to end, and are killed.

    Raises subprocess.TimeoutExpired."""
    end = time.monotonic() + seconds
    try:
        while True:
            codes = [rank.poll() for rank in ranks]
            failed = next((code for code in codes if code), 0)
            if None not in codes:
                return failed
            if failed:
                end = min(end, time.monotonic() + AFTER_A_FAILURE)
            if time.monotonic() > end:
                break
            time.sleep(0.02)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if failed:
        return failed
    raise subprocess.TimeoutExpired(ranks[0].args, seconds)


def _number(file: int) -> int:
    found = os.read(file, 8)
    assert len(found) == 8, "the server of the starts has ended"
    return int.from_bytes(found, "little", signed=True)


def _unnamed_file() -> IO[bytes]:
    return tempfile.TemporaryFile()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@functools.cache
def _server() -> socket.socket:
    """Ends when this process does, which closes the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    nowhere = subprocess.DEVNULL
    subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        env=variables, stdin=nowhere, stdout=nowhere, pass_fds=[theirs.fileno()],
    )  # fmt: skip
    theirs.close()
    return ours


def _serve(requests: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ended, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    running: dict[int, int] = {}  # where the end of a process is told
    while True:
        ready = select.select([requests, ended], [], [])[0]
        if ended in ready:
            os.read(ended, 4096)
            for pid in list(running):
                if (found := os.waitpid(pid, os.WNOHANG))[0]:
                    _tell(running[pid], os.waitstatus_to_exitcode(found[1]))
                    os.close(running.pop(pid))
        if requests in ready:
            request, files, _, _ = socket.recv_fds(requests, 2**20, 3)
            if not request:
                return
            out, error, told = files
            if (pid := os.fork()) == 0:
                os.dup2(out, 1)
                os.dup2(error, 2)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for file in {*files, *running.values(), ended, wakes, requests.detach()}:
                    os.close(file)
                _run(**json.loads(request))
            running[pid] = told
            _tell(told, pid)
            os.close(out)
            os.close(error)


def _tell(file: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it
        os.write(file, number.to_bytes(8, "little", signed=True))


def _run(arguments: list[str], env: dict[str, str], folder: str) -> NoReturn:
    """As `python *arguments` would, which are `-m MODULE ...` or `FILE ...`."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    if arguments[0] == "-m":
        sys.path[0], sys.argv = folder, arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(arguments[0]).parent), arguments
        runpy.run_path(arguments[0], run_name="__main__")
    sys.exit()


def _import_what_runs_import() -> None:
    from tgm_scale.runtime.compat import prepare_torchvision

    prepare_torchvision()
    import torch

    from tgm_scale.engine.extensions import prepare_deepspeed

    prepare_deepspeed(torch.device("cpu"))
    import torch._dynamo
    import torch.utils.tensorboard
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast  # noqa: F401

    import tgm_scale.finetuning.task
    import tgm_scale.training.pretraining  # noqa: F401


if __name__ == "__main__":
    _import_what_runs_import()
    gc.collect()
    gc.freeze()  # no collection of a process that is forked walks what was imported
    assert len(os.listdir("/proc/self/task")) == 1, "what is forked has no other thread"
    _serve(socket.socket(fileno=int(sys.argv[1])))
