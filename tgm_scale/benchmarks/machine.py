"""Shared helpers of the benchmarks: description of the machine, CPU seconds of processes, tables, file of figures."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

_OF_ALL_THREADS = 2  # in Linux's id of another process's clock, as clock_getcpuclockid(3) builds it


def described() -> dict[str, Any]:
    """Return machine, date and versions, without which figures are worthless."""
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
    """Return the CPU seconds of these processes, including ended threads, to the nanosecond."""
    return sum(time.clock_gettime((~pid << 3) | _OF_ALL_THREADS) for pid in pids)


def resident_mb(pid: int) -> float:
    """Return the private memory of a process, MB: pages shared with other processes are not counted."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = [row.split()[1] for row in rows if row.startswith("Private_")]
    return sum(map(int, private)) / 1024


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table, ready for docs/PERFORMANCE.md."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(path: Path, figures: dict[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
