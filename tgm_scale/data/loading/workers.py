"""Worker processes that decode samples ahead: any worker takes the next sample, and results are delivered in order.

Pixels are decoded directly into the batch's memory, which all processes share; their metadata goes through a pipe.
A clip of 16 frames at 224 is 2.4 MB, and each copy of it costs 2 % of its decoding. A pool of `concurrent.futures`
has two threads in the training process that wake up for each sample: another 2 %."""

from __future__ import annotations

import copy
import fcntl
import multiprocessing
import os
import pickle
import queue
import select
import signal
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Lock
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch

from tgm_scale.data.access import patience
from tgm_scale.data.access.patience import stop_where_waited
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Fetched, Sample
from tgm_scale.data.loading.to_device import SharedBatches
from tgm_scale.runtime.processes import end_with_parent

_LONGEST_FOLDER = 70  # bytes; the suffix /pymp-xxxxxxxx/listener-xxxxxxxx has 32
_SHORT = ("/dev/shm", "/var/tmp")
READERS = 3  # threads of each worker that read remote samples ahead of its decoder
_LOOK_MS = 200  # interval of checks for a request to stop
_PIPE_BYTES = 1 << 20  # the maximum for an unprivileged process; maps of 4 repeats take 25 kB a sample


class WorkerDied(RuntimeError):
    """Error for a worker process that ended by itself or was killed."""

    exit_code = 87  # of the command: slurm/launch.sh restarts it, but not twice without progress


class _Task(NamedTuple):
    number: int  # from 0 on
    position: int
    place: int  # of its batch in the shared memory
    row: int


def decode_ahead(
    samples: Samples, positions: Iterable[int], batch: int, workers: int, ahead: int
) -> Iterator[tuple[list[Sample], torch.Tensor]]:
    """Yield the samples at these positions, in their order, `batch` at a time, with their pixels, uint8 [batch, N, T,
    H, W, 3]; `workers` processes have up to `ahead` samples in progress or ready. The positions make whole batches.

    Raises what decoding raises, and WorkerDied."""
    sampling = samples.sampling
    clip = (sampling.frames, sampling.size, sampling.size, 3)
    memory = SharedBatches((batch, sampling.repeated_augmentation, *clip))
    pool = _WorkerPool(samples, memory, workers)
    begun: deque[tuple[int, torch.Tensor]] = deque()  # batches not yielded yet: place and pixels

    def ordered() -> Iterator[Sample]:
        number = -1
        for number, position in enumerate(positions):
            if number % batch == 0:
                begun.append(memory.take())
            first = pool.result(number - ahead) if number >= ahead else None
            pool.ask(_Task(number, position, begun[-1][0], number % batch))
            if first is not None:
                yield first
        yield from map(pool.result, range(max(number + 1 - ahead, 0), number + 1))

    decoded = ordered()
    try:
        while done := list(islice(decoded, batch)):
            yield done, begun.popleft()[1]
    finally:
        pool.end()


class _WorkerPool:
    """Pool of worker processes: any of them takes the next task, and its result is kept until it is requested."""

    def __init__(self, samples: Samples, memory: SharedBatches, workers: int):
        # A fork of this process would carry its GPU context and its threads' locks; a fork server is small and has the
        # imports done, so a worker starts in milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        tasks, self._tasks = context.Pipe(duplex=False)
        self._turn = turn = context.Lock()  # a starting worker looks it up by name
        self._arrived: dict[int, Sample | Exception] = {}
        self._workers: dict[int, tuple[Connection, multiprocessing.process.BaseProcess]] = {}  # by the inbox's number
        self._inboxes = select.poll()
        with _shielded(), _short_paths():
            for _ in range(workers):
                inbox, outbox = context.Pipe(duplex=False)
                _widen(inbox)
                process = context.Process(target=_work, args=(samples, memory, tasks, turn, outbox), daemon=True)
                process.start()
                outbox.close()  # so that the inbox ends when the worker does
                self._workers[inbox.fileno()] = inbox, process
                self._inboxes.register(inbox.fileno(), select.POLLIN)
        tasks.close()
        Finalize(self, _kill, ([process for _, process in self._workers.values()],), exitpriority=1)  # see _shielded

    def ask(self, task: _Task) -> None:
        with suppress(BrokenPipeError):  # no worker is left: `result` reports why
            self._tasks.send(task)

    def result(self, number: int) -> Sample:
        """Return the result of the task of this number. Raises what the task raised, WorkerDied, and
        StoppedWaiting."""
        while number not in self._arrived:
            stop_where_waited()
            for file, _ in self._inboxes.poll(_LOOK_MS):
                inbox, process = self._workers[file]
                try:
                    arrived, found = inbox.recv()
                except (EOFError, OSError):
                    process.join()
                    raise WorkerDied(_cause_of_death(process.exitcode)) from None
                if arrived is None:
                    patience.of_worker(process.pid or 0, found)
                else:
                    self._arrived[arrived] = found
        found = self._arrived.pop(number)
        if isinstance(found, Exception):
            raise found
        return found

    def end(self) -> None:
        _kill([process for _, process in self._workers.values()])
        for inbox, process in self._workers.values():
            process.join()
            inbox.close()
            patience.of_worker(process.pid or 0, [])
        self._tasks.close()


def _kill(processes: Iterable[multiprocessing.process.BaseProcess]) -> None:
    """Kill the workers: one may be in a long decode, or wait for a server that is down. Also at the end of this
    process, where multiprocessing would send SIGTERM, which they block, and wait."""
    for process in processes:
        with suppress(ValueError):  # closed
            process.kill()


def _widen(inbox: Connection) -> None:
    """Let results wait in the pipe while a step runs, so that the worker can continue."""
    with suppress(OSError, AttributeError):  # over the user's limit; not Linux
        fcntl.fcntl(inbox.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _work(samples: Samples, memory: SharedBatches, tasks: Connection, turn: Lock, outbox: Connection) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    sending = threading.Lock()  # threads that read ahead report their waits

    def send(message: tuple[int | None, Any]) -> None:
        with sending:
            outbox.send(message)

    patience.listen(lambda found: send((None, found)))
    for task, fetched in _fetched(samples, tasks, turn):
        found: Sample | Exception
        try:
            if isinstance(fetched, Exception):
                raise fetched
            found = samples.decode(fetched, memory.pixels(task.place)[task.row])
        except Exception as error:
            found = _portable(error)
        send((task.number, found))


def _fetched(samples: Samples, tasks: Connection, turn: Lock) -> Iterator[tuple[_Task, Fetched | Exception]]:
    """Yield tasks with the data read for them. Remote ones are read by threads while others are decoded: READERS in
    progress and one ready."""

    def fetch() -> Iterator[tuple[_Task, Fetched | Exception]]:
        while True:
            with turn:
                task = tasks.recv()
            try:
                yield task, samples.fetch(task.position)
            except Exception as error:
                yield task, error

    if not samples.remote:
        yield from fetch()
    ready: queue.Queue[tuple[_Task, Fetched | Exception] | Exception] = queue.Queue(maxsize=1)

    def read_ahead() -> None:
        try:
            for one in fetch():
                ready.put(one)
        except EOFError:  # no more tasks: the training has ended
            pass
        except Exception as error:
            ready.put(error)

    for _ in range(READERS):
        threading.Thread(target=read_ahead, daemon=True).start()
    while True:
        found = ready.get()
        if isinstance(found, Exception):  # a thread has died, and so does the worker, which the training notices
            raise found
        yield found


def _portable(error: Exception) -> Exception:
    """Return the error in a form that can be pickled, with its traceback."""
    where = RuntimeError("".join(traceback.format_exception(error)))
    try:
        pickle.dumps(error)
        copy.copy(error)  # reconstructed in the same way as by the receiver
    except Exception:
        return where
    error.add_note(f"in a data worker:\n{where}")
    return error


@contextmanager
def _shielded() -> Iterator[None]:
    """Block, in processes started within, the signals that schedulers and terminals send to a whole job or group so
    that it saves itself: the trainer handles them. For this process they are delayed until the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _short_paths() -> Iterator[None]:
    """Use a shorter folder for temporary files where TMPDIR is too long: it holds the fork server's socket, whose
    path has at most 107 bytes."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        tempfile.tempdir = next((folder for folder in _SHORT if os.access(folder, os.W_OK | os.X_OK)), before)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _cause_of_death(code: int | None) -> str:
    causes = {
        -signal.SIGKILL: "killed, as the kernel does when memory is full: lower data.workers",
        -signal.SIGSEGV: "crashed in the video decoder",
    }
    return f"a data worker died (exit code {code}: {causes.get(code or 0, 'its own output says why')})"
