"""What `tgm-scale tune` tries: candidates for running one configuration that differ in speed and memory, and a trial
of one."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.config import Config
from tgm_scale.planning.footprint import OFFLOADS, Footprint, footprint
from tgm_scale.planning.run_plan import plan_pretraining
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime import memory
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.local_run import LocalRun
from tgm_scale.runtime.outside.json_text import json_object

GIB = 2**30
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # relative: what layouts of one run may differ by
_LOWEST_STAGE = {"none": 0, "optimizer": 1, "all": 3}
_SECTIONS = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}
_LOOK = 0.2  # seconds from one look at a trial to the next


@dataclass(frozen=True)
class Candidate:
    """One way: ZeRO stage, what is offloaded to the host (footprint.OFFLOADS), clips of one pass, checkpointing."""

    stage: int
    offload: str
    micro: int
    checkpointing: bool

    @property
    def name(self) -> str:
        offload = "" if self.offload == "none" else f"-offload-{self.offload}"
        return f"zero{self.stage}{offload}-micro{self.micro}" + ("-checkpointing" if self.checkpointing else "")

    def deepspeed(self, given: dict[str, Any]) -> dict[str, Any]:
        """The DeepSpeed JSON: the user's own, with this stage and offload in place of its own."""
        zero = {key: value for key, value in given.get("zero_optimization", {}).items() if key not in _SECTIONS["all"]}
        for section in _SECTIONS[self.offload]:
            theirs = given.get("zero_optimization", {}).get(section) or {}
            zero[section] = {"pin_memory": True, **theirs, "device": "cpu"}
        return {**given, "zero_optimization": {**zero, "stage": self.stage}}

    def overrides(self, file: Path) -> list[str]:
        """Those that make a configuration this candidate; `file` holds its DeepSpeed JSON."""
        return [
            f"deepspeed.config={file}",
            "deepspeed.stage=null",
            f"train.micro_batch_size={self.micro}",
            f"model.activation_checkpointing={str(self.checkpointing).lower()}",
        ]


def load_dividing(file: str, overrides: list[str], processes: int) -> Config:
    """The configuration; where its micro batch does not divide over the processes, with the next smaller that does,
    which is added to the overrides. Raises ValueError where none does."""
    config = configuration.load(file, overrides)
    own, batch = config.train.micro_batch_size, config.train.global_batch_size
    repeats = config.data.repeated_augmentation
    fitting = [m for m in range(1, own + 1) if batch % (m * processes) == 0 and m % repeats == 0]
    if not fitting:
        raise ValueError(f"train.global_batch_size={batch} does not divide over --processes {processes}")
    if fitting[-1] != own:
        overrides.append(f"train.micro_batch_size={fitting[-1]}")
    return configuration.load(file, overrides)


def current_candidate(config: Config, process: ProcessInfo) -> Candidate:
    need = footprint(plan_pretraining(config, process), config.model.activation_checkpointing)
    return Candidate(need.stage, need.offload, config.train.micro_batch_size, config.model.activation_checkpointing)


def grid(config: Config, processes: int, stages: list[int], micros: list[int], offloads: list[str]) -> list[Candidate]:
    """Every candidate that can be, small micro batches before large ones. Raises ValueError where there is none."""
    share, repeats = config.train.global_batch_size // processes, config.data.repeated_augmentation
    for micro in micros:
        if micro < 1 or share % micro or micro % repeats:
            fits = [str(m) for m in range(1, share + 1) if share % m == 0 and m % repeats == 0]
            raise ValueError(
                f"--micro-batches {micro}: wanted one of {', '.join(fits)}: a divisor of train.global_batch_size="
                f"{config.train.global_batch_size} over {processes} processes"
                + (f", and a multiple of data.repeated_augmentation={repeats}" if repeats > 1 else "")
            )
    found = [
        Candidate(stage, offload, micro, checkpointing)
        for stage, offload, checkpointing, micro in itertools.product(
            sorted(set(stages)), [o for o in OFFLOADS if o in offloads], (False, True), sorted(set(micros))
        )
        if stage >= _LOWEST_STAGE[offload]
    ]
    if not found:
        raise ValueError(f"--offloads {','.join(offloads)}: the optimizer wants stage 1 or higher, all wants stage 3")
    return found


def micro_batches(config: Config, processes: int) -> list[int]:
    """The configuration's own micro batch, half and twice of it, as far as they divide the batch."""
    own, share = config.train.micro_batch_size, config.train.global_batch_size // processes
    return [m for m in (own // 2, own, own * 2) if m and share % m == 0 and m % config.data.repeated_augmentation == 0]


def obstacle(need: Footprint, processes: int, device: float | None, host: float) -> str | None:
    """Why arithmetic says that a candidate cannot fit. device: a GPU's bytes, None on a CPU; host: free bytes."""
    on_host = processes * (need.host + (need.device if device is None else 0))
    if device is not None and need.device > device:
        return f"needs {need.device / GIB:.1f} GiB a GPU, which has {device / GIB:.1f}"
    if on_host > host:
        return f"needs {on_host / GIB:.1f} GiB of the host's memory, {host / GIB:.1f} are free"
    return None


@dataclass
class Trial:
    """Some steps of one candidate, by `python -m tgm_scale pretrain` in `processes` processes.

    keep_free: bytes; where the host has less left, the trial is ended as one that ran out of memory."""

    command: list[str]
    folder: Path
    processes: int
    steps: int
    warm: int
    keep_free: float

    def run(self, report: Callable[[str], None]) -> dict[str, Any]:
        """The outcome: 'ran' with its figures, 'out of memory', or 'failed'."""
        log = self.folder / "output.log"
        peak, starved = 0, False
        with LocalRun(self.command, self.processes, log) as life:
            for made in self._steps_made(life):
                report(f"step {made}/{self.steps}")
                peak = max([peak, *(memory.peak_resident_bytes(process.pid) for process in life.ranks)])
                if starved := memory.free_bytes() < self.keep_free:
                    break
            if self._rows() < self.steps and not starved:
                time.sleep(1)  # for the others' last words
            codes = [process.poll() for process in life.ranks]
            life.kill()  # all figures are there: the checkpoint at the end of a run is not wanted
            life.wait()
        if starved:
            return {"outcome": "out of memory", "why": f"under {self.keep_free / GIB:.1f} GiB of the host's were left"}
        if self._rows() < self.steps:
            return failure(codes, log.read_text())
        rows = read_metrics(self.folder / "run")
        timed = rows[self.warm : self.steps]
        figures = {
            "clips_per_second": median(row["clips_per_second"] for row in timed),
            "waiting": sum(row["data_seconds"] for row in timed) / sum(row["step_seconds"] for row in timed),
            "host_GB": peak / 1e9,
            "losses": [row["loss"] for row in rows[: self.steps]],
        }
        device = [row["device_memory_gb"] for row in timed if "device_memory_gb" in row]
        return {"outcome": "ran", **figures, **({"device_GB": max(device)} if device else {})}

    def _rows(self) -> int:
        file = self.folder / "run" / "metrics.jsonl"
        return len(read_metrics(file.parent)) if file.is_file() else 0

    def _steps_made(self, life: LocalRun) -> Iterator[int]:
        """How many, again and again, until there are enough or a process has ended."""
        while (made := self._rows()) < self.steps and not life.ended():
            yield made
            time.sleep(_LOOK)


def failure(codes: list[int | None], log: str) -> dict[str, Any]:
    """Out of memory by torch's message or the kernel's kill, or another failure with the last line of the output."""
    if -signal.SIGKILL in codes:
        return {"outcome": "out of memory", "why": "a process was killed, as the kernel does where memory is short"}
    lines = [line for line in log.splitlines() if line.strip()]
    for line in lines:
        if "out of memory" in line.lower() or "can't allocate memory" in line:
            return {"outcome": "out of memory", "why": line.strip()[:200]}
    return {"outcome": "failed", "why": f"exit codes {codes}: {lines[-1].strip()[:200] if lines else 'nothing said'}"}


def loss_difference(losses: list[float], reference: list[float]) -> float:
    """The largest relative difference of two runs' losses."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(losses, reference, strict=True))


def json_of(config: Config) -> dict[str, Any]:
    """The user's own DeepSpeed JSON, if there is one."""
    return json_object(Path(config.deepspeed.config)) if config.deepspeed.config else {}


def command(file: str, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "tgm_scale", "pretrain", "--config", file, *overrides]
