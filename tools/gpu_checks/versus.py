"""Our training step compared with that of transformers.VideoMAEForPreTraining on the same work, in turns, in one
process.

The same: clips, tubes hidden at 0.9, model shape, autocast to bf16 over fp32 weights, fused AdamW, pixels normalised
by patch. Each step is forward, loss, backward and update. `python -m gpu_checks.versus --device cuda --json FILE`"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gpu_checks.matrix import seconds_of, tflops
from gpu_checks.scale import SCALES, Scale
from tgm_scale.contracts import Grid
from tgm_scale.conversion.huggingface import decoder_settings, shape_settings
from tgm_scale.masking.recipes import build_masker
from tgm_scale.models.compiling import compile_blocks
from tgm_scale.models.pretraining import MaskedVideoAutoencoder, macs_per_clip
from tgm_scale.models.vit import SIZES, ModelOptions, ModelSize
from tgm_scale.planning.module import JointModule
from tgm_scale.runtime.compat import prepare_torchvision

STEPS = 3  # of a turn
OURS, THEIRS = "ours", "transformers"


def main(scale: Scale, device: torch.device) -> dict[str, Any]:
    size, frames, side = SIZES["B"], 16, 224
    if scale.device == "cpu":
        size, frames, side = replace(SIZES["tiny"], depth=1, decoder_depth=1), 4, 32
    rate = tflops(device, scale.matrix)
    micro, figures = scale.micro, None
    while figures is None:
        figures = _compare_where_it_fits(size, frames, side, micro, scale, device)
        micro = micro if figures else micro // 2
    masker = build_masker("tube", Grid.of(frames, side, size.tubelet, size.patch), mask_ratio=0.9)
    macs = macs_per_clip(size, frames, side, masker.visible_count, masker.target_count)
    for way in ("eager", "compiled"):
        figures[f"mfu_{way}"] = round(6 * macs * figures[f"{OURS}_{way}_clips_per_second"] / (rate * 1e12), 4)
    return figures | {"micro_batch": micro, "matrix_tflops": round(rate, 4)}


def _compare_where_it_fits(*arguments: Any) -> dict[str, float] | None:
    """`compare`, or None where memory was too short for it; what it had taken is free again."""
    micro = arguments[3]
    try:
        return compare(*arguments)
    except torch.cuda.OutOfMemoryError:
        if micro <= 1:
            raise
        print(f"{micro} clips a pass do not fit", flush=True)
    gc.collect()  # the error held on to all of the step
    torch.cuda.empty_cache()
    return None


def compare(
    size: ModelSize, frames: int, side: int, micro: int, scale: Scale, device: torch.device
) -> dict[str, float]:
    """Clips a second of each of the four, and the medians of the turns' ratios."""
    steps = {
        f"{name}_{way}": make(size, frames, side, micro, device, way == "compiled")
        for way in ("eager", "compiled")
        for name, make in ((OURS, our_step), (THEIRS, their_step))
    }
    turns: list[dict[str, float]] = []
    for turn in range(scale.turns + 2):  # two that warm up: the first compiles
        order = list(steps) if turn % 2 else list(steps)[::-1]
        turns.append({name: _turn(steps[name], device) for name in order})
    turns = turns[2:]
    figures = {f"{name}_clips_per_second": round(micro / median(t[name] for t in turns), 3) for name in steps}
    for way in ("eager", "compiled"):
        ratios = [turn[f"{THEIRS}_{way}"] / turn[f"{OURS}_{way}"] for turn in turns]
        figures[f"{way}_ratio"] = round(median(ratios), 4)
    return figures


def _turn(step: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one step."""

    def several() -> None:
        for _ in range(STEPS):
            step()

    return seconds_of(several, device) / STEPS


def clips(frames: int, side: int, micro: int, device: torch.device) -> Tensor:
    """uint8 [B, 3, T, H, W]"""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (micro, 3, frames, side, side), generator=generator, dtype=torch.uint8).to(device)


def our_step(
    size: ModelSize, frames: int, side: int, micro: int, device: torch.device, compiled: bool
) -> Callable[[], Tensor]:
    masker = build_masker("tube", Grid.of(frames, side, size.tubelet, size.patch), mask_ratio=0.9)
    mask = masker(torch.arange(micro, device=device))
    module = JointModule(our_model(size, frames, side, compiled), contrastive=False).to(device)
    video = clips(frames, side, micro, device)
    return _training_step(module, lambda: module(video, mask.visible, mask.target)[0].mean(), device)


def our_model(size: ModelSize, frames: int, side: int, compiled: bool) -> MaskedVideoAutoencoder:
    """Compiled as `model.compile` does it in training: block by block."""
    model = MaskedVideoAutoencoder(size, frames, side, options=ModelOptions("sdpa"))
    if compiled:
        compile_blocks(model)
    return model


def their_step(
    size: ModelSize, frames: int, side: int, micro: int, device: torch.device, compiled: bool
) -> Callable[[], Tensor]:
    """As VideoMAE's users have it: normalised fp32 pixels [B, T, 3, H, W] and a boolean mask come from the loader."""
    prepare_torchvision()
    import transformers

    settings = shape_settings(size, frames, side) | decoder_settings(size)
    settings |= {"norm_pix_loss": True, "attn_implementation": "sdpa"}
    model: nn.Module = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**settings))
    model.to(device)
    if compiled:
        model.compile()
    grid = Grid.of(frames, side, size.tubelet, size.patch)
    mask = build_masker("tube", grid, mask_ratio=0.9)(torch.arange(micro, device=device))
    hidden = torch.ones(micro, grid.tokens, dtype=torch.bool, device=device).scatter(1, mask.visible, False)
    pixels = (clips(frames, side, micro, device).transpose(1, 2).float() / 255 - 0.45) / 0.225
    return _training_step(model, lambda: model(pixels, bool_masked_pos=hidden).loss, device)


def _training_step(module: nn.Module, loss_of: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = loss_of()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True, choices=sorted(SCALES))
    parser.add_argument("--json", required=True, type=Path)
    options = parser.parse_args()
    options.json.write_text(json.dumps(main(SCALES[options.device], torch.device(options.device)), indent=1))
