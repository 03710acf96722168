"""What the benchmarks share: the machine in words, CPU seconds of processes, tables, the file of figures."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

_OF_ALL_THREADS = 2  # in Linux's number of another process's clock, as clock_getcpuclockid(3) makes it


def described() -> dict[str, Any]:
    """The machine, the date and the versions that figures are worth nothing without."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def headline() -> str:
    facts = described()
    return f"{facts['date']}, {facts['processor']}, {facts['cores']} cores used, torch {facts['torch']}" + (
        f", {facts['gpu']}" if facts["gpu"] else ""
    )


def cpu_seconds(pids: Iterable[int]) -> float:
    """Seconds that these processes have had a processor, threads that ended included, to the nanosecond."""
    return sum(time.clock_gettime((~pid << 3) | _OF_ALL_THREADS) for pid in pids)


def resident_mb(pid: int) -> float:
    """Memory that the process alone holds, MB: pages it shares with others are not counted."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = [row.split()[1] for row in rows if row.startswith("Private_")]
    return sum(map(int, private)) / 1024


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, ready for docs/PERFORMANCE.md."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(path: Path, figures: dict[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
