"""Comparison of a pretraining step with that of transformers.VideoMAEForPreTraining on the same work, in turns.

Both have the same weights, clips, masks, precision (autocast over fp32 weights) and fused AdamW. A step is forward
pass, loss, backward pass and update. The two models' losses on the same weights are compared first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tgm_scale.assembly.run_plan import Shape, run_masker, shape_of
from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.benchmarks.timed import seconds_of
from tgm_scale.config import Config
from tgm_scale.contracts import Mask
from tgm_scale.conversion.huggingface import configuration, model_class, to_huggingface
from tgm_scale.conversion.key_maps import ModelMetadata
from tgm_scale.conversion.weights import Weights
from tgm_scale.engine.plan import resolve_precision
from tgm_scale.masking.recipes import Masker
from tgm_scale.models.compiling import compile_blocks
from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions, initialise
from tgm_scale.objectives.reconstruction import reconstruction_error
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import message

PRODUCTS = 10  # of square matrices, to measure the device's own rate
SIDE = {"cpu": 512, "cuda": 8192}  # of a CPU without bf16 instructions: 40 times the time of fp32
Step = Callable[[], Tensor]  # returns the loss


@dataclass(frozen=True)
class Work:
    """Work that both models do."""

    shape: Shape
    masker: Masker
    clips: int
    precision: str  # fp32 or bf16
    device: torch.device
    options: ModelOptions
    seed: int = 0

    def video(self) -> Tensor:
        """Return random clips, uint8 [B, 3, T, H, W], on the device."""
        generator = torch.Generator().manual_seed(self.seed)
        side = self.shape.image_size
        shape = (self.clips, 3, self.shape.frames, side, side)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(self.device)

    def mask(self) -> Mask:
        return self.masker(torch.arange(self.clips, device=self.device))

    def step_of(self, module: nn.Module, loss_of: Step) -> Step:
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

        def step() -> Tensor:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                loss = loss_of()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            return loss.detach()

        return step


def work_of(config: Config, device: torch.device) -> Work:
    """Return the work. Raises ValueError for settings that transformers' model lacks, or masks that need guidance."""
    mistakes = {
        f"masking.recipe={config.masking.recipe}": bool(run_masker(config).needs),
        f"masking.visible_ratio={config.masking.visible_ratio}": config.masking.visible_ratio is not None,
        f"model.decode_ratio={config.model.decode_ratio:g}": config.model.decode_ratio != 1,
        f"model.decoder_attention={config.model.decoder_attention}": config.model.decoder_attention != "self",
        f"objective.normalise_by={config.objective.normalise_by}": config.objective.normalise_by != "patch",
    }
    if found := [key for key, wrong in mistakes.items() if wrong]:
        raise ValueError(
            f"--against transformers with {', '.join(found)}: its model reconstructs all that is hidden, normalised "
            "by patch, under masks of no guidance: add masking.recipe=tube masking.visible_ratio=null "
            "model.decode_ratio=1 model.decoder_attention=self objective.normalise_by=patch"
        )
    options = ModelOptions(config.model.attention)
    precision = resolve_precision(config.train.precision, device)
    clips = config.train.micro_batch_size
    return Work(shape_of(config), run_masker(config), clips, precision, device, options, config.run.seed)


def own_model(work: Work) -> MaskedVideoAutoencoder:
    shape = work.shape
    model = MaskedVideoAutoencoder(shape.size, shape.frames, shape.image_size, options=work.options)
    initialise(model, work.seed)
    return model


def own_step(work: Work, model: MaskedVideoAutoencoder, compiled: bool = False) -> Step:
    """Return our step. compiled: block by block, as `model.compile` does in training."""
    model.to(work.device)
    if compiled:
        compile_blocks(model)
    mask, video = work.mask(), work.video()

    def loss() -> Tensor:
        output = model(video, mask.visible, mask.target)
        return reconstruction_error(output.prediction_BMP, output.target_BMP).mean()

    return work.step_of(model, loss)


def peer_model(work: Work, own: MaskedVideoAutoencoder) -> nn.Module:
    """Return transformers' model with the same weights."""
    shape, size = work.shape, work.shape.size
    stated = ModelMetadata(size.heads, size.decoder_heads, shape.frames, shape.image_size)
    weights = Weights.of("pretraining", own.state_dict(), stated, [])
    kind = model_class("pretraining")
    model: nn.Module = kind(configuration(weights))
    model.load_state_dict(to_huggingface(weights))
    return model.train()


def peer_step(work: Work, model: nn.Module, compiled: bool = False) -> Step:
    """Return the peer's step, as its users run it: their loader gives normalised fp32 pixels [B, T, 3, H, W] and a
    boolean mask."""
    model.to(work.device)
    if compiled:
        model.compile()
    mean, std = (torch.tensor(x, device=work.device).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    pixels_BTCHW = (work.video().transpose(1, 2) / 255 - mean) / std
    mask = work.mask()
    hidden_BN = torch.ones(work.clips, work.shape.grid.tokens, dtype=torch.bool, device=work.device)
    hidden_BN.scatter_(1, mask.visible, False)
    return work.step_of(model, lambda: model(pixels_BTCHW, bool_masked_pos=hidden_BN).loss)


def in_turns(steps: dict[str, Step], turns: int, warm: int, device: torch.device) -> list[dict[str, float]]:
    """Return the seconds of each step, turn by turn in alternating order, without the first `warm` turns."""
    measured = []
    with ProgressBars() as bars:
        task = bars.task("turns", turns)
        for turn in range(turns):
            order = list(steps) if turn % 2 else list(steps)[::-1]
            measured.append({name: seconds_of(steps[name], device) for name in order})
            task.advance()
    return measured[warm:]


def matrix_rate(precision: str, device: torch.device, side: int) -> float:
    """Return FLOP/s of the device in square matrix products: the median of a few turns after a warm-up."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.matmul(a, b)

    seconds = [seconds_of(products, device) for _ in range(6)][1:]
    return PRODUCTS * 2 * side**3 / median(seconds)


def run(config: Config, turns: int, warm: int, described: str) -> dict[str, Any]:
    """Return clips per second of both, the median of the turns' ratios, and each share of the device's own rate."""
    work = work_of(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    figures = _measured(work, config.model.compile, turns, warm)
    _show(work, figures, described)
    return figures


def _measured(work: Work, compiled: bool, turns: int, warm: int) -> dict[str, Any]:
    own = own_model(work)
    peer = peer_model(work, own)
    steps = {"tgm_scale": own_step(work, own, compiled), "transformers": peer_step(work, peer, compiled)}
    print(f"the first step of each, of {work.clips} clips (train.micro_batch_size)", flush=True)
    first = {name: float(step()) for name, step in steps.items()}
    measured = in_turns(steps, turns, warm, work.device)
    rate = matrix_rate(work.precision, work.device, SIDE[work.device.type])
    flops = 6 * work.shape.macs(work.masker.visible_count, work.masker.target_count)
    speed = {name: work.clips / median(turn[name] for turn in measured) for name in steps}
    ratios = [turn["transformers"] / turn["tgm_scale"] for turn in measured]
    return {
        "ratio": median(ratios),
        "ratios": ratios,
        "clips_per_second": speed,
        "first_loss": first,
        "matrix_flops": rate,
        "share_of_matrix_rate": {name: flops * value / rate for name, value in speed.items()},
    }


def _show(work: Work, figures: dict[str, Any], described: str) -> None:
    turns = len(figures["ratios"])
    print(message(f"{headline()}; {described}; {work.clips} clips a step, {work.precision}, medians of {turns} turns"))
    print("a step: forward pass, loss, backward pass, update; no guidance and no data")
    per_second = "clips a second" if work.device.type == "cuda" else "clips a second of CPU time"
    speed, share = figures["clips_per_second"], figures["share_of_matrix_rate"]
    rows = [
        (name, f"{loss:.6f}", f"{speed[name]:.3f}", f"{share[name]:.1%}")
        for name, loss in figures["first_loss"].items()
    ]
    print(table(("step", "first loss", per_second, "of the matrix rate"), rows))
    print(f"tgm_scale is {figures['ratio']:.3f} times as fast (median of the turns' ratios)")
    print(f"matrix rate: {figures['matrix_flops'] / 1e9:.1f} GFLOP/s in square {work.precision} products")
