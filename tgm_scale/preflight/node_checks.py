"""Checks of one process on its node before a run: versions, GPU, disks, shards, shared folder, extensions, InfiniBand.

Nothing here communicates: `verdict` compares the reports and names the node that differs.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.config.sections import TrainingConfig
from tgm_scale.data.shards.index import Corpus, DamagedMember
from tgm_scale.data.shards.video_files import MISSING
from tgm_scale.engine import extensions
from tgm_scale.preflight.task_checks import TaskChecks
from tgm_scale.runs import environment, run_folder
from tgm_scale.runtime.distributed import ProcessInfo, refuse_hidden_gpus
from tgm_scale.runtime.terminal import without_secrets
from tgm_scale.training.opening import check_room

_GB = 1e9
_TEMPORARY_BYTES = 1 * _GB  # compiled kernels and sockets; a full /tmp fails late and without explanation
_SIDE = 4096  # of the matrix product that tests a GPU: 2 * 4096^3 FLOP, 0.2 ms on an H100
_ROUNDS = 50
_LOOKED_FOR = 8  # most videos of a list that are tried until one exists
_SHARED_FOLDER_SECONDS = 10  # a network file system may show a new file only after its attribute cache expires


@dataclass
class Report:
    """Findings of one process.

    must_match: must be the same on all nodes; problems: by kind, so that they can be compared."""

    rank: int
    node: str
    must_match: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    measurements: dict[str, float] = field(default_factory=dict)
    gpu: str | None = None  # its UUID
    tried: list[str] = field(default_factory=list)  # lines on what was tried, for display

    def attempt(self, kind: str, check: Callable[[], None]) -> None:
        """Run a check; an error is recorded as a problem of this kind, and other checks continue."""
        try:
            check()
        except (ValueError, OSError, RuntimeError) as error:
            self.problems[kind] = str(error).strip().split("\n")[0]


def node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def inspect_node(task: TaskChecks, process: ProcessInfo, no_gpu: str | None) -> Report:
    """Check everything local to a process: configuration, versions, GPU (or why it has none), local disks."""
    report = Report(process.rank, node_name())
    report.must_match = {name: str(version) for name, version in environment.versions().items()}
    report.must_match |= {"python": platform.python_version(), "the code": _source_digest()}
    report.attempt("configuration", lambda: task.check(process))
    report.attempt("GPU", lambda: _try_gpu(report, process, no_gpu))
    report.attempt("temporary folder", _check_temporary_folder)
    return report


def inspect_shared(task: TaskChecks, process: ProcessInfo, token: str) -> Report:
    """Check what all nodes share: the run folder with the token that rank 0 left in it, its disk, the shards."""
    report = Report(process.rank, node_name())
    report.attempt("run folder", lambda: _check_run_folder(task.config, token))
    report.attempt("disk", lambda: check_room(task.config, task.plan(process), Path(task.config.run.dir)))
    report.attempt("shards", lambda: _read_shards(report, task, process))
    return report


def token_file(config: TrainingConfig, token: str) -> Path:
    return Path(config.run.dir) / f".preflight-{token}"


def _source_digest() -> str:
    digest = hashlib.blake2b(digest_size=6)
    package = Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()


def _try_gpu(report: Report, process: ProcessInfo, no_gpu: str | None) -> None:
    """Compute a product of known elements and time it. Raises if the GPU is missing, in use or wrong."""
    if no_gpu is not None:
        raise ValueError(no_gpu)
    if process.device.type == "cpu":
        report.must_match["device"] = "CPU"
        refuse_hidden_gpus(process)
        return
    properties = torch.cuda.get_device_properties(process.device)
    report.must_match |= {"device": properties.name, "NCCL": str(torch.cuda.nccl.version())}
    report.gpu = str(properties.uuid)
    free, whole = torch.cuda.mem_get_info(process.device)
    if free < 0.9 * whole:
        raise ValueError(f"GPU {process.local_rank}: {(whole - free) / _GB:.0f} of {whole / _GB:.0f} GB are in use")
    ones = torch.ones(_SIDE, _SIDE, device=process.device, dtype=torch.bfloat16)
    product = ones @ ones
    if not bool((product == _SIDE).all()):
        raise ValueError(f"GPU {process.local_rank}: a matrix product came out wrong")
    torch.cuda.synchronize(process.device)
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        torch.mm(ones, ones, out=product)
    torch.cuda.synchronize(process.device)
    report.measurements["FLOP/s"] = 2 * _SIDE**3 * _ROUNDS / (time.perf_counter() - began)


def _check_temporary_folder() -> None:
    folder = tempfile.gettempdir()
    with tempfile.NamedTemporaryFile():
        free = shutil.disk_usage(folder).free
    if free < _TEMPORARY_BYTES:
        raise ValueError(f"{folder} has {free / _GB:.1f} GB free, {_TEMPORARY_BYTES / _GB:.0f} GB are wanted")


def _check_run_folder(config: TrainingConfig, token: str) -> None:
    run_folder.open_folder(config)
    deadline = time.monotonic() + _SHARED_FOLDER_SECONDS
    file = token_file(config, token)
    while not file.is_file():
        if time.monotonic() > deadline:
            raise ValueError(
                f"run.dir={config.run.dir}: what rank 0 wrote there is not seen: put it on a file system of all nodes"
            )
        time.sleep(0.2)


def _read_shards(report: Report, task: TaskChecks, process: ProcessInfo) -> None:
    """Read one sample of each corpus; other ranks read other shards."""
    for name, corpus in task.corpora(process).items():
        read_one(corpus, process.rank)
        report.must_match[f"corpus {name}"] = f"{len(corpus)} samples, {corpus.fingerprint}"


def read_one(corpus: Corpus, first: int) -> None:
    """Raise ValueError if none of some videos, drawn over the whole list, exists: the address may be wrong."""
    count = len(corpus.shards)
    # drawn: evenly spaced places may all be on one server if a list alternates between several
    for place in random.Random(first).sample(range(count), min(count, _LOOKED_FOR)):
        ref = corpus.sample(place, 0)
        try:
            corpus.read(ref, [ref.video])
            return
        except DamagedMember as error:  # of a sample, which the run leaves out and reports: the storage responds
            if error.problem.reason != MISSING:
                return
            gone = error.problem
    raise ValueError(
        f"{without_secrets(corpus.origin)}: {gone.key}: {gone.detail}, as of all that were looked for: paths "
        "of the list are addresses, or relative to data.root (default: the folder of the list): correct data.root or "
        "the list"
    )


def try_extensions(plan: RunPlan, process: ProcessInfo, clear: bool) -> list[str]:
    """Load DeepSpeed's Adam for CPUs if the plan offloads, building it if it is missing.

    clear: remove the lock of a build that was killed."""
    lines = []
    if clear:
        folder = extensions.build_folder(extensions.CPU_ADAM)
        left = extensions.left_lock(folder)
        if left is not None:
            extensions.clear_lock(left)
            lines.append(f"{left}: removed")
    if offloads(plan):
        extensions.prepare_deepspeed(process.device)
        seconds = extensions.load_cpu_adam(verbose=process.is_main)
        lines.append(f"DeepSpeed's Adam for CPUs, ready in {seconds:.0f} s")
    return lines


def offloads(plan: RunPlan) -> bool:
    return "offload_optimizer" in plan.engine.zero


def check_infiniband(cards: Path = Path("/sys/class/infiniband"), library: str = "libibverbs.so.1") -> None:
    """Raise ValueError if the machine has InfiniBand cards that NCCL cannot use."""
    found = sorted(card.name for card in cards.iterdir()) if cards.is_dir() else []
    if not found:
        return
    try:
        ctypes.CDLL(library)
    except OSError:
        raise ValueError(
            f"InfiniBand cards {', '.join(found)}, but {library} cannot be loaded: NCCL would fall back to sockets; "
            "install libibverbs1, ibverbs-providers and librdmacm1 (in a container, in its image)"
        ) from None
