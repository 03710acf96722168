"""Rate of a device's own matrix products, the reference for a model's utilisation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from gpu_checks.scale import SCALES
from tgm_scale.benchmarks.against import matrix_rate


def tflops(device: torch.device, side: int) -> float:
    """Return the rate for square bf16 matrices, 10^12 FLOP/s."""
    return matrix_rate("bf16", device, side) / 1e12


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True, choices=sorted(SCALES))
    parser.add_argument("--json", required=True, type=Path)
    options = parser.parse_args()
    rate = tflops(torch.device(options.device), SCALES[options.device].matrix)
    options.json.write_text(json.dumps({"matrix_tflops": round(rate, 4)}), encoding="utf-8")
