"""Candidates of `tgm-scale tune`, ways to run one configuration that differ in speed and memory, and the trial of a
candidate."""

from __future__ import annotations

import importlib.util
import itertools
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field

from tgm_scale import config as configuration
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.config import Config
from tgm_scale.planning.footprint import LOWEST_STAGE, OFFLOADS, SECTIONS, Footprint, footprint
from tgm_scale.runs.metrics import loss_in_words, read_metrics
from tgm_scale.runtime import memory
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.training.watchdog import HUNG_EXIT_CODE

GIB = 2**30
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # relative: tolerance between layouts of one run
# messages of torch on a GPU and on a CPU, of the system, C++ and Python
_SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "memoryerror")
_OF_SLURM = ("srun: ", "slurmstepd: ")
_LOOK = 0.2  # seconds between checks of a trial


class Ran(BaseModel):
    """Line of outcomes.jsonl for a successful trial."""

    name: str
    outcome: Literal["ran"]
    clips_per_second: float = Field(gt=0)
    host_GB: float
    losses: list[float]


class DidNotRun(BaseModel):
    """Line of outcomes.jsonl for any other trial."""

    name: str
    outcome: Literal["out of memory", "hung", "failed"]
    why: str


Line = Annotated[Ran | DidNotRun, Field(discriminator="outcome")]


@dataclass(frozen=True)
class Candidate:
    """One way to run: ZeRO stage, offload to the host (footprint.OFFLOADS), micro batch, checkpointing; also
    compilation, attention kernel and data workers where they differ from the configuration's own."""

    stage: int
    offload: str
    micro: int
    checkpointing: bool
    compile: bool | None = None
    attention: str | None = None
    workers: int | None = None

    @property
    def name(self) -> str:
        offload = "" if self.offload == "none" else f"-offload-{self.offload}"
        name = f"zero{self.stage}{offload}-micro{self.micro}" + ("-checkpointing" if self.checkpointing else "")
        return "-".join([name, *self.varied])

    @property
    def varied(self) -> list[str]:
        """Return labels of the settings that differ from the configuration's own."""
        compiled = [] if self.compile is None else ["compiled" if self.compile else "eager"]
        attention = [] if self.attention is None else [self.attention]
        return [*compiled, *attention, *([] if self.workers is None else [f"workers{self.workers}"])]

    def deepspeed(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the DeepSpeed JSON: the user's, with this candidate's stage and offload."""
        zero = {key: value for key, value in given.get("zero_optimization", {}).items() if key not in SECTIONS["all"]}
        for section in SECTIONS[self.offload]:
            theirs = given.get("zero_optimization", {}).get(section) or {}
            zero[section] = {"pin_memory": True, **theirs, "device": "cpu"}
        return {**given, "zero_optimization": {**zero, "stage": self.stage}}

    def overrides(self, file: Path) -> list[str]:
        """Return the overrides that turn a configuration into this candidate; `file` has its DeepSpeed JSON."""
        return [
            configuration.override("deepspeed.config", file),
            "deepspeed.stage=null",
            f"train.micro_batch_size={self.micro}",
            f"model.activation_checkpointing={str(self.checkpointing).lower()}",
            *([] if self.compile is None else [f"model.compile={str(self.compile).lower()}"]),
            *([] if self.attention is None else [f"model.attention={self.attention}"]),
            *([] if self.workers is None else [f"data.workers={self.workers}"]),
        ]


def load_dividing(file: str, overrides: list[str], processes: int) -> Config:
    """Return the configuration. Where its micro batch does not divide over the processes, the next smaller one that
    does is used and added to the overrides. Raises ValueError where none does."""
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


def ways_of(first: Candidate, stages: list[int], offloads: list[str]) -> list[Candidate]:
    """Return all valid ways, with the micro batch of the first candidate. Raises ValueError where there is none."""
    found = [
        Candidate(stage, offload, first.micro, checkpointing)
        for offload, checkpointing, stage in itertools.product(
            [o for o in OFFLOADS if o in offloads], (False, True), sorted(set(stages))
        )
        if stage >= LOWEST_STAGE[offload]
    ]
    if not found:
        raise ValueError(f"--offloads {','.join(offloads)}: the optimizer wants stage 1 or higher, all wants stage 3")
    return found


def check_micros(config: Config, processes: int, micros: list[int]) -> None:
    """Raise ValueError for a micro batch that does not divide a process's share of the batch."""
    share, repeats = config.train.global_batch_size // processes, config.data.repeated_augmentation
    for micro in micros:
        if micro < 1 or share % micro or micro % repeats:
            fits = [str(m) for m in range(1, share + 1) if share % m == 0 and m % repeats == 0]
            raise ValueError(
                f"--micro-batches {micro}: wanted one of {', '.join(fits)}: a divisor of train.global_batch_size="
                f"{config.train.global_batch_size} over {processes} processes"
                + (f", and a multiple of data.repeated_augmentation={repeats}" if repeats > 1 else "")
            )


def micro_batches(config: Config, processes: int) -> list[int]:
    """Return all divisors of a process's share of the batch that are valid micro batches, ascending."""
    share = config.train.global_batch_size // processes
    return [m for m in range(1, share + 1) if share % m == 0 and m % config.data.repeated_augmentation == 0]


def variants(config: Config, on_gpu: bool) -> list[dict[str, Any]]:
    """Return changes that affect speed only. On a CPU compilation takes longer than a trial, and there is one
    kernel."""
    found: list[dict[str, Any]] = []
    if on_gpu:
        found.append({"compile": not config.model.compile})
        kernels = ["sdpa", *(["flash"] if importlib.util.find_spec("flash_attn") else [])]
        found += [{"attention": kernel} for kernel in kernels if len(kernels) > 1]
    workers = config.data.workers
    counts = sorted({max(1, workers // 2), 2 * workers} - {0, workers})
    return found + [{"workers": count} for count in counts]


def obstacle(need: Footprint, processes: int, device: float | None, host: float) -> str | None:
    """Return why a candidate cannot fit by arithmetic. device: bytes of a GPU, None on a CPU; host: free bytes."""
    on_host = processes * (need.on_cpu if device is None else need.host)
    if device is not None and need.device > device:
        return f"needs {need.device / GIB:.1f} GiB a GPU, which has {device / GIB:.1f}"
    if on_host > host:
        return f"needs {on_host / GIB:.1f} GiB of the host's memory, {host / GIB:.1f} are free"
    return None


class Run(Protocol):
    """Processes of a trial, within a `with` statement: LocalRun or StepRun."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def codes(self) -> list[int | None]: ...

    def ended(self) -> bool: ...


@dataclass
class Trial:
    """A few steps of one candidate, by the `tgm-scale pretrain` processes that `run` starts; the folder has their
    output in output.log, and their run folder in `run`.

    keep_free: bytes; if this host has less left, the trial ends as out of memory. patience: seconds without a step
    after which it counts as hung. until: deadline on time.monotonic()."""

    run: Run
    folder: Path
    steps: int
    warm: int
    keep_free: float = 0.0
    patience: float = 600.0
    until: float = math.inf

    def outcome(self, report: Callable[[str], None]) -> dict[str, Any] | None:
        """Return 'ran' with its figures, 'out of memory', 'hung', or 'failed'; None where the time was over."""
        peak, starved = 0, False
        last, since = -1, time.monotonic()
        with self.run:
            for made in self._steps_made():
                report(f"step {made}/{self.steps}")
                now = time.monotonic()
                last, since = (made, now) if made > last else (last, since)
                if now > self.until:
                    return None
                if now > since + self.patience:
                    hung = {"outcome": "hung", "why": f"no step in {self.patience:g} s after step {made}"}
                    return _short_of_memory(self._log()) or hung  # after which a rank may hang on exit
                peak = max(peak, self._peak())
                if starved := memory.free_bytes() < self.keep_free:
                    break
            if self._rows() < self.steps and not starved:
                time.sleep(1)  # for the other processes' last output
            codes = self.run.codes()
        # all figures are complete: the checkpoint at the end of a run is not needed
        if starved:
            return {"outcome": "out of memory", "why": f"under {self.keep_free / GIB:.1f} GiB of the host's were left"}
        if self._rows() < self.steps:
            return failure(codes, self._log())
        rows = read_metrics(self.folder / "run")
        if broken := [row for row in rows[: self.steps] if row["loss"] is None]:
            return {"outcome": "failed", "why": f"step {broken[0]['step']}: the loss is {loss_in_words(broken[0])}"}
        timed = rows[self.warm : self.steps]
        figures = {
            "clips_per_second": median(row["clips_per_second"] for row in timed),
            "waiting": sum(row["data_seconds"] for row in timed) / sum(row["step_seconds"] for row in timed),
            "host_GB": peak / 1e9,
            "losses": [row["loss"] for row in rows[: self.steps]],
        }
        device = [row["device_memory_gb"] for row in timed if "device_memory_gb" in row]
        return {"outcome": "ran", **figures, **({"device_GB": max(device)} if device else {})}

    def _log(self) -> str:
        return (self.folder / "output.log").read_text(errors="replace", encoding="utf-8")

    def _peak(self) -> int:
        """Return the bytes of the largest process on this host, by the heartbeats."""
        peak = 0
        for file in (self.folder / "run" / "ranks").glob("[0-9]*"):
            with suppress(OSError, ValueError):  # the file is being replaced
                beat = json_object(file)
                if beat["host"] == platform.node():
                    peak = max(peak, memory.peak_resident_bytes(beat["pid"]))
        return peak

    def _rows(self) -> int:
        file = self.folder / "run" / "metrics.jsonl"
        return len(read_metrics(file.parent)) if file.is_file() else 0

    def _steps_made(self) -> Iterator[int]:
        """Yield the number of steps so far, repeatedly, until it suffices or a process has ended."""
        while (made := self._rows()) < self.steps and not self.run.ended():
            yield made
            time.sleep(_LOOK)


def failure(codes: list[int | None], log: str) -> dict[str, Any]:
    """Classify a failure: out of memory by torch's message or the kernel's kill, a hang by the run's watchdog, or
    another one with the last line of the output. codes: as in Python or in a shell."""
    if {-signal.SIGKILL, 128 + signal.SIGKILL} & set(codes):
        return {"outcome": "out of memory", "why": "a process was killed, as the kernel does where memory is short"}
    lines = [line for line in log.splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(_OF_SLURM)] or lines
    if HUNG_EXIT_CODE in codes:
        why = next((line.strip()[:200] for line in lines if " waited " in line), "no step in faults.hang_seconds")
        return {"outcome": "hung", "why": why}
    if short := _short_of_memory(log):
        return short
    return {"outcome": "failed", "why": f"exit codes {codes}: {own[-1].strip()[:200] if own else 'nothing said'}"}


def _short_of_memory(log: str) -> dict[str, Any] | None:
    for line in log.splitlines():
        if any(words in line.lower() for words in _SHORT_OF_MEMORY):
            return {"outcome": "out of memory", "why": line.strip()[:200]}
    return None


def loss_difference(losses: list[float], reference: list[float]) -> float:
    """Return the largest relative difference between two runs' losses."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(losses, reference, strict=True))


def json_of(config: Config) -> dict[str, Any]:
    """Return the user's own DeepSpeed JSON, or {} without one."""
    return json_object(Path(config.deepspeed.config)) if config.deepspeed.config else {}


def words(file: str, overrides: list[str]) -> list[str]:
    """Return the arguments of a trial's command, after the name of python."""
    return ["-m", "tgm_scale", "pretrain", "--config", file, *overrides]
