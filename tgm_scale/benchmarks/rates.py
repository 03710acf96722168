"""Speed of this machine on transformer blocks: a forward and a backward pass of each width in the models.

`tgm-scale plan --rates` reads the file of rows, in place of a card's peak and an assumed utilisation."""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch
from torch import nn

from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.models.vit import SIZES, Block
from tgm_scale.planning.rates import FORMAT
from tgm_scale.runtime.progress import ProgressBars

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_GPU_TOKENS, _CPU_TOKENS = 1568 * 32, 1568  # of all clips together: enough to fill a GPU; seconds on a core
_TOKENS = 392  # per clip: a quarter of 16 frames of 224 x 224


def run(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precisions = options.precisions.split(",") if options.precisions else [_own(device)]
    if unknown := [name for name in precisions if name not in _DTYPES]:
        raise ValueError(f"--precisions {unknown[0]}: known are {', '.join(_DTYPES)}")
    sizes = options.sizes.split(",")
    if unknown := [name for name in sizes if name not in SIZES]:
        raise ValueError(f"--sizes {unknown[0]}: known are {', '.join(SIZES)}")
    if options.turns < 1:
        raise ValueError(f"--turns {options.turns}: wanted at least 1")
    clips = (_GPU_TOKENS if device.type == "cuda" else _CPU_TOKENS) // _TOKENS
    shapes = _shapes(sizes)
    rows: list[dict[str, Any]] = []
    with ProgressBars() as bars:
        task = bars.task("blocks", len(shapes) * len(precisions))
        for precision in precisions:
            for width, heads, mlp in shapes:
                task.to(len(rows), f"{width} wide, {precision}")
                seconds = _seconds(Block(width, heads, mlp, "sdpa"), (clips, _TOKENS, width), precision, options.turns)
                macs = clips * _TOKENS * (4 * width**2 + 2 * width * mlp + 2 * _TOKENS * width)
                row: dict[str, Any] = {
                    "precision": precision,
                    "width": width,
                    "mlp": mlp,
                    "tokens": _TOKENS,
                    "clips": clips,
                }
                rows.append({**row, "seconds": seconds, "flops": 6 * macs / seconds})
        task.to(len(rows))
    print(f"{headline()}; a block's forward and backward pass, medians of {options.turns} turns")
    shown = [
        (r["precision"], r["width"], r["mlp"], f"{1e3 * r['seconds']:.1f}", f"{r['flops'] / 1e12:.3g}") for r in rows
    ]
    print(table(("precision", "width", "MLP", "ms", "TFLOP/s"), shown))
    return {"format": FORMAT, "machine": headline(), "blocks": rows}


def _own(device: torch.device) -> str:
    return "bf16" if device.type == "cuda" else "fp32"


def _shapes(sizes: list[str]) -> list[tuple[int, int, int]]:
    """Return width, heads and MLP of the blocks of encoders and decoders, each width once."""
    found: dict[int, tuple[int, int, int]] = {}
    for size in (SIZES[name] for name in sizes):
        found.setdefault(size.width, (size.width, size.heads, size.mlp))
        found.setdefault(size.decoder_width, (size.decoder_width, size.decoder_heads, size.decoder_mlp))
    return [found[width] for width in sorted(found)]


def _seconds(block: nn.Module, shape: tuple[int, int, int], precision: str, turns: int) -> float:
    """Return the seconds of a forward and a backward pass; the first two turns warm up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    block = block.to(device, _DTYPES[precision])
    x_BND = torch.randn(shape, device=device, dtype=_DTYPES[precision], requires_grad=True)
    taken = []
    for _ in range(turns + 2):
        _wait(device)
        began = _clock(device)
        block(x_BND).backward(x_BND.detach())
        _wait(device)
        taken.append(_clock(device) - began)
    return median(taken[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _clock(device: torch.device) -> float:
    """Return the time; on a CPU the process's own time over its threads, since others may use the cores, too."""
    return time.perf_counter() if device.type == "cuda" else time.process_time() / torch.get_num_threads()
