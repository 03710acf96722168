"""Comparison of our training step with transformers.VideoMAEForPreTraining's, eager and compiled, on the same work:
tubes hidden at 0.9, bf16. `python -m gpu_checks.versus --device cuda --json FILE`"""

from __future__ import annotations

import argparse
import gc
import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gpu_checks.matrix import tflops
from gpu_checks.scale import SCALES, Scale
from tgm_scale.assembly.run_plan import Shape
from tgm_scale.benchmarks.against import Step, Work, in_turns, own_model, own_step, peer_model, peer_step
from tgm_scale.contracts import Grid
from tgm_scale.masking.recipes import build_masker
from tgm_scale.models.vit import SIZES, ModelOptions

OURS, THEIRS = "ours", "transformers"
WARM = 2  # turns: the first compiles


def main(scale: Scale, device: torch.device) -> dict[str, Any]:
    work = work_of(scale, device)
    rate = tflops(device, scale.matrix)
    figures = None
    while figures is None:
        figures = _compare_where_it_fits(work, scale.turns)
        work = work if figures else replace(work, clips=work.clips // 2)
    macs = work.shape.macs(work.masker.visible_count, work.masker.target_count)
    for way in ("eager", "compiled"):
        figures[f"mfu_{way}"] = round(6 * macs * figures[f"{OURS}_{way}_clips_per_second"] / (rate * 1e12), 4)
    return figures | {"micro_batch": work.clips, "matrix_tflops": round(rate, 4)}


def work_of(scale: Scale, device: torch.device) -> Work:
    name, size, frames, side = "B", SIZES["B"], 16, 224
    if scale.device == "cpu":
        name, size, frames, side = "tiny", replace(SIZES["tiny"], depth=1, decoder_depth=1), 4, 32
    grid = Grid.of(frames, side, size.tubelet, size.patch)
    masker = build_masker("tube", grid, mask_ratio=0.9)
    return Work(Shape(name, size, frames, side, grid), masker, scale.micro, "bf16", device, ModelOptions("sdpa"))


def _compare_where_it_fits(work: Work, turns: int) -> dict[str, float] | None:
    """Return `compare`, or None where memory did not suffice, after freeing it."""
    try:
        return compare(work, turns)
    except torch.cuda.OutOfMemoryError:
        if work.clips <= 1:
            raise
        print(f"{work.clips} clips a pass do not fit", flush=True)
    gc.collect()  # the error kept all tensors of the step alive
    torch.cuda.empty_cache()
    return None


def compare(work: Work, turns: int) -> dict[str, float]:
    """Return clips per second of each of the four, and the medians of the turns' ratios."""
    steps: dict[str, Step] = {}
    for way in ("eager", "compiled"):
        own = own_model(work)
        peer = peer_model(work, own)
        steps[f"{OURS}_{way}"] = own_step(work, own, way == "compiled")
        steps[f"{THEIRS}_{way}"] = peer_step(work, peer, way == "compiled")
    found = in_turns(steps, turns + WARM, WARM, work.device)
    figures = {f"{name}_clips_per_second": round(work.clips / median(t[name] for t in found), 3) for name in steps}
    for way in ("eager", "compiled"):
        ratios = [turn[f"{THEIRS}_{way}"] / turn[f"{OURS}_{way}"] for turn in found]
        figures[f"{way}_ratio"] = round(median(ratios), 4)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True, choices=sorted(SCALES))
    parser.add_argument("--json", required=True, type=Path)
    options = parser.parse_args()
    options.json.write_text(
        json.dumps(main(SCALES[options.device], torch.device(options.device)), indent=1), encoding="utf-8"
    )
