"""One start of a training run on this host: its processes, as srun starts them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tgm_scale.runtime.network import free_port


class LocalRun:
    """Processes of one run, each with its rank; a context manager at whose end none is left.

    command: what each process is; log: the file to which all write; variables: more of their environment; limit: bytes
    of private memory that each may ask for (RLIMIT_DATA). Each process leads a group, which is killed at the
    end."""

    def __init__(
        self,
        command: list[str],
        processes: int,
        log: Path,
        variables: dict[str, str] | None = None,
        limit: int | None = None,
    ):
        common = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        self.began = time.time()
        self.ranks: list[subprocess.Popen] = []
        for rank in range(processes):
            own = {"RANK": rank, "LOCAL_RANK": rank, **common}
            environment = {"OMP_NUM_THREADS": "1", **os.environ, **(variables or {})}
            environment |= {name: str(value) for name, value in own.items()}
            with log.open("a") as stream:
                started = subprocess.Popen(
                    command, env=environment, stdout=stream, stderr=stream, start_new_session=True
                )
            self.ranks.append(started)
            if limit is not None:
                resource.prlimit(started.pid, resource.RLIMIT_DATA, (limit, limit))

    def kill(self, ranks: slice = slice(None)) -> None:
        for process in self.ranks[ranks]:
            process.send_signal(signal.SIGKILL)

    def wait(self) -> list[int]:
        """The exit codes."""
        return [process.wait() for process in self.ranks]

    def running(self) -> bool:
        """Whether a process has not ended."""
        return any(process.poll() is None for process in self.ranks)

    def ended(self) -> bool:
        """Whether a process has ended."""
        return any(process.poll() is not None for process in self.ranks)

    def __enter__(self) -> LocalRun:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.ranks:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the data workers of a rank that has ended
        self.wait()
