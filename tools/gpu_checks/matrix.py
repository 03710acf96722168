"""The rate of a device's own matrix products: what a model's use of it is compared with."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from gpu_checks.scale import SCALES

PRODUCTS, TURNS = 20, 5


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Until all that it queued is done."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def tflops(device: torch.device, side: int) -> float:
    """Of square bf16 matrices, 10^12 FLOP/s: the median of a few turns, after one that warms up."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.matmul(a, b)

    turns = [seconds_of(products, device) for _ in range(TURNS + 1)][1:]
    return PRODUCTS * 2 * side**3 / median(turns) / 1e12


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True, choices=sorted(SCALES))
    parser.add_argument("--json", required=True, type=Path)
    options = parser.parse_args()
    rate = tflops(torch.device(options.device), SCALES[options.device].matrix)
    options.json.write_text(json.dumps({"matrix_tflops": round(rate, 4)}))
