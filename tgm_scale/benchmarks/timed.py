"""Work done once per micro batch, timed alternately with a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from tgm_scale.runtime.progress import ProgressBars


@dataclass(frozen=True)
class Timed:
    """Computation done once per micro batch."""

    name: str
    maps: Callable[[], Any] | None  # the part of the frozen model or the flow
    mask: Callable[[], Any] | None = None
    overlapped: bool = False  # `maps` runs during a step: its time is what it adds to that step
    unmeasured: str = ""  # reason for a missing figure


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of the work; on a CPU its CPU time, since other processes may use the cores, too."""
    if device.type != "cuda":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(step: Callable[[], Any], timed: list[Timed], turns: int, device: torch.device) -> list[dict[str, float]]:
    """Return the seconds of each part, turn by turn; a first turn warms up and is not counted."""
    measured = []
    with ProgressBars() as bars:
        task = bars.task("turns", turns + 1)
        for _ in range(turns + 1):
            turn = {"step": seconds_of(step, device)}
            for one in timed:
                for part, work in (("maps", one.maps), ("mask", one.mask)):
                    if work is not None:
                        beside = turn["step"] if one.overlapped else 0.0
                        turn[f"{one.name} {part}"] = seconds_of(work, device) - beside
            measured.append(turn)
            task.advance()
    return measured[1:]


def rows_of(timed: list[Timed], turns: list[dict[str, float]]) -> list[dict[str, str]]:
    step = {"what": "the training step", "maps": "", "mask": "", "share": milliseconds(turns, "step") + " ms"}
    rows = [step]
    for one in timed:
        parts = [f"{one.name} {part}" for part in ("maps", "mask")]
        share = median(sum(turn.get(part, 0.0) for part in parts) / turn["step"] for turn in turns)
        maps, mask = (milliseconds(turns, part) for part in parts)
        shown = one.unmeasured or f"{share:.2%}"
        rows.append({"what": one.name, "maps": maps, "mask": mask, "share": shown})
    return rows


def milliseconds(turns: list[dict[str, float]], part: str) -> str:
    return f"{1000 * median(turn[part] for turn in turns):.1f}" if part in turns[0] else ""
