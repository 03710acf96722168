"""DeepSpeed's Adam for CPUs: compiled at the first start on a machine, with messages and without hanging.

torch marks a build by a file named `lock`. A killed process leaves it behind, and every later start would wait for it
forever, silently. So a start first checks who holds it: a process of this host that has the file open, or a compiler
that works in the folder. A lock that no process here holds is removed if only this host has begun a build there. If
another host may be building, the start waits until the lock is older than any build takes; then it ends and names the
lock."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from tgm_scale.runtime.compat import quiet_warnings

CPU_ADAM = "cpu_adam"  # DeepSpeed's name of the extension
BUILD_SECONDS = 600  # upper limit of a build, which takes 80 s on one free core
_QUIET_SECONDS = 5  # of silent waiting: a process that finds everything built holds the lock for a moment
_LOCK = "lock"  # the name in torch.utils.cpp_extension
_RECORD = "builder-"  # followed by the host's name: an unfinished build was begun there
_SEES_PROCESSES = Path("/proc/self/fd").is_dir()


def prepare_deepspeed(device: torch.device) -> None:
    """Import DeepSpeed for this kind of device, with a quiet log and its compiler's tools on the PATH."""
    os.environ["DS_ACCELERATOR"] = device.type  # an inherited value may name the other kind
    # ninja, with which DeepSpeed builds its extensions, is next to the python of a virtual environment
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    quiet_warnings()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    found = deepspeed.get_accelerator().device_name()
    assert found == device.type, f"DeepSpeed was imported for {found} before the run's device was known"
    if device.type == "cpu":
        # a C++ extension that DeepSpeed would compile for 20 s at every fresh start, failing without a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def load_cpu_adam(verbose: bool) -> float:
    """Load DeepSpeed's Adam for CPUs into this process, building it where it is missing. Return the seconds it took.

    verbose: print waiting and building. Raises RuntimeError where it cannot be built, ValueError for a lock that a
    killed build left behind."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    began, builder = time.perf_counter(), CPUAdamBuilder()
    folder = build_folder(CPU_ADAM)
    if (folder / _LOCK).exists():
        _wait_for_lock(folder, verbose)
    if (folder / f"{CPU_ADAM}.so").is_file():
        builder.load(verbose=False)
        return time.perf_counter() - began
    record = folder / _own_record()
    if verbose:
        print(f"building DeepSpeed's Adam for CPUs in {folder}, once: some 80 s on one core", flush=True)
    record.touch()
    try:
        builder.load(verbose=False)
    finally:
        record.unlink(missing_ok=True)
    if verbose:
        print(f"built in {time.perf_counter() - began:.0f} s", flush=True)
    return time.perf_counter() - began


def build_folder(name: str) -> Path:
    """Create and return the folder where torch builds the extension of this name."""
    from torch.utils.cpp_extension import _get_build_directory

    try:
        return Path(_get_build_directory(name, verbose=False))
    except OSError as error:
        root = os.environ.get("TORCH_EXTENSIONS_DIR", "the home folder")
        raise ValueError(
            f"{error}: DeepSpeed's Adam for CPUs is built in {root}: set TORCH_EXTENSIONS_DIR to a folder that can be "
            "written"
        ) from None


def left_lock(folder: Path) -> Path | None:
    """Return the lock in the folder if a build left it behind: no process of this host holds it, and no other host can
    hold it, or it is too old. None without a lock, or where a build may still be running."""
    lock = folder / _LOCK
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None
    if _is_held(lock):
        return None
    return lock if _begun_here_alone(folder) or age > BUILD_SECONDS else None


def clear_lock(lock: Path) -> None:
    """Remove a lock left behind, and the records of who began to build."""
    for file in (*lock.parent.glob(_RECORD + "*"), lock):
        file.unlink(missing_ok=True)


def _own_record() -> str:
    return _RECORD + platform.node()


def _begun_here_alone(folder: Path) -> bool:
    return _SEES_PROCESSES and [file.name for file in folder.glob(_RECORD + "*")] == [_own_record()]


def _wait_for_lock(folder: Path, verbose: bool) -> None:
    lock, began, announced = folder / _LOCK, time.monotonic(), False
    while lock.exists():
        with _alone_on_this_host(folder):  # else one process could remove the lock that another has just created
            left = left_lock(folder)
            if left is not None and _begun_here_alone(folder):
                clear_lock(left)
                print(f"{left}: left by a build on this host that was killed; removed", flush=True)
                return
        if left is not None:
            raise ValueError(
                f"{left}: older than the {BUILD_SECONDS // 60} minutes that a build may take, and no process of this "
                "host holds it: a build was killed. Remove it (`tgm-scale preflight --clear-locks` does), or set "
                "TORCH_EXTENSIONS_DIR to another folder"
            )
        if verbose and not announced and time.monotonic() - began > _QUIET_SECONDS:
            announced = True
            print(f"waiting for another process that builds in {folder} (its lock: {lock})", flush=True)
        time.sleep(0.2)


@contextmanager
def _alone_on_this_host(folder: Path) -> Iterator[None]:
    with (folder / "settling").open("w", encoding="utf-8") as stream:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _is_held(lock: Path) -> bool:
    """Return whether another process of this host has the lock open, or works in its folder, as compilers do that
    outlive the process that started them."""
    own, lock = str(os.getpid()), lock.resolve()
    for process in Path("/proc").glob("[0-9]*"):
        if process.name != own and any(path == str(lock) for path in _opened(process)):
            return True
        if _target(process / "cwd") == str(lock.parent):
            return True
    return False


def _opened(process: Path) -> Iterator[str]:
    with suppress(OSError):  # the process has ended, or belongs to another user
        for descriptor in (process / "fd").iterdir():
            yield _target(descriptor)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
