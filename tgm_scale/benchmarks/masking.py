"""Milliseconds of each recipe's maps and masks, compared with one training step on the same micro batch."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.assembly.learned_masks import LearnedMap
from tgm_scale.assembly.parts import autoencoder, pixel_statistics
from tgm_scale.assembly.run_plan import masker_of, run_masker, shape_of
from tgm_scale.assembly.towers import Towers, load_towers
from tgm_scale.benchmarks.clips import FPS, moving_texture
from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.benchmarks.timed import Timed, measure, milliseconds, rows_of
from tgm_scale.benchmarks.towers import SHAPES, random_clip
from tgm_scale.config import Config, apply_overrides, from_tree, read_tree
from tgm_scale.contracts import Mask
from tgm_scale.data.video.decode import Video
from tgm_scale.data.video.encode import encode_video
from tgm_scale.data.video.motion import MotionRecorder
from tgm_scale.guidance.flow import check_flow
from tgm_scale.guidance.maps import Relevance
from tgm_scale.guidance.towers import load_image_tower, tower_folder
from tgm_scale.masking.recipes import RECIPES, Masker
from tgm_scale.models.generator import Generator
from tgm_scale.models.sampler import Sampler
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective


def run(options: argparse.Namespace) -> dict[str, Any]:
    if options.clips < 1 or options.turns < 1:
        raise ValueError(f"--clips {options.clips}, --turns {options.turns}: wanted at least 1 of each")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        towers = random_clip(options.towers, Path(scratch)) if options.towers in SHAPES else options.towers
        tree = apply_overrides(read_tree(options.config), [f"guidance.towers={towers}", *options.overrides])
        config = from_tree(tree, options.config)
        data = config.data
        print(
            f"{headline()}; model {config.model.size}, {options.clips} clips of {data.frames} x {data.size} x "
            f"{data.size}, mask ratio {config.masking.mask_ratio}, tower {options.towers}; "
            + ("milliseconds" if device.type == "cuda" else "milliseconds of CPU time")
        )
        video = torch.randint(0, 256, (options.clips, 3, data.frames, data.size, data.size), dtype=torch.uint8)
        video = video.to(device)
        step = _step(config, video, device)
        timed = [*_recipes(config, video, device), *_savings(config, video, device, step)]
        turns = measure(step, timed, options.turns, device)
    rows = rows_of(timed, turns)
    print(table(["what", "maps, ms", "mask, ms", "of a step"], [list(row.values()) for row in rows]))
    decoding = _decoding(config, options.clips, options.turns)
    plain, watched = decoding["plain_ms"], decoding["with_vectors_ms"]
    print(f"decoding the batch, CPU time: {plain} ms, with motion vectors {watched} ms")
    return {"step_ms": milliseconds(turns, "step"), "rows": rows, "decoding": decoding}


def _decoding(config: Config, clips: int, turns: int) -> dict[str, float]:
    """Return a data worker's milliseconds per micro batch with and without codec vectors, for clips of 320 x 240."""
    data, grid = config.data, shape_of(config).grid
    count = data.frames * data.stride
    encoded = encode_video(moving_texture(0, 320, 240, count), FPS)
    indices = np.arange(0, count, data.stride)

    def decode(vectors: bool) -> float:
        began = time.process_time()
        for _ in range(clips):
            recorder = MotionRecorder() if vectors else None
            with Video(encoded, recorder) as video:
                for _ in video.frames(indices):
                    pass
            if recorder is not None:
                recorder.slots(indices, grid.slots)
        return 1000 * (time.process_time() - began)

    pairs = [(decode(False), decode(True)) for _ in range(turns)]
    plain, watched = (round(median(column), 1) for column in zip(*pairs))
    return {"plain_ms": plain, "with_vectors_ms": watched}


def _step(config: Config, video: Tensor, device: torch.device) -> Callable[[], Any]:
    """Return forward pass, reconstruction loss, backward pass and AdamW update of the configured model, without an
    engine."""
    shape, masker = shape_of(config), run_masker(config)
    model = autoencoder(shape, config.model, config.run.seed, None, pixel_statistics(config.data))
    module = JointModule(model, Objective.of({"pixels": 1.0}, TermSettings(model.size))).to(device)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4)
    noise = masker_of(config.masking.model_copy(update={"recipe": "random"}), shape.grid, config.model.decode_ratio)
    seeds = torch.arange(len(video), device=device)
    visible, target = noise(seeds).visible, noise(seeds).target
    mask = Mask(visible[:, : masker.visible_count], target[:, : masker.target_count])
    dtype = torch.bfloat16 if device.type == "cuda" else None

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            error_1B, *_ = module(video, mask.visible, mask.target)
        error_1B.mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _recipes(config: Config, video: Tensor, device: torch.device) -> list[Timed]:
    found = []
    for name in RECIPES:
        masking = config.masking.model_copy(update={"recipe": name, "options": {}})
        masker = masker_of(masking, shape_of(config).grid, config.model.decode_ratio)
        if "flow" in masker.needs:
            try:
                check_flow(config.guidance.flow)
            except ValueError as missing:
                print(f"left out: {name}: {missing}")
                continue
        needs, grid = masker.needs, masker.grid
        towers = load_towers(config.guidance, needs, config.objective.contrastive_weight > 0, device)
        if masker.learned is not None:  # only its forward pass
            model = autoencoder(shape_of(config), config.model, 0, None, pixel_statistics(config.data))
            learned = Generator(towers.heads) if towers.heads else Sampler(model)
            heads = towers.maps.pop("heads", None)
            towers.maps[masker.learned] = LearnedMap(model, learned, heads)
        compute = _maps_of(towers, video, masker)
        shape = (len(video), grid.slots, grid.rows, grid.columns)
        maps = {key: torch.rand(shape, device=device) for key in needs} | (compute() if compute else {})
        seeds = torch.arange(len(video), device=device)

        def mask(masker: Masker = masker, seeds: Tensor = seeds, maps: dict[str, Tensor] = maps) -> Mask:
            return masker(seeds, **maps)

        found.append(Timed(name, compute, mask))
    return found


def _maps_of(towers: Towers, video: Tensor, masker: Masker) -> Callable[[], dict[str, Tensor]] | None:
    """Return the computation of maps by frozen models and flow; None where there is none."""
    if towers.relevance is None and not towers.maps:
        return None

    def compute() -> dict[str, Tensor]:
        maps = {name: way(video, masker.grid) for name, way in towers.maps.items()}
        if towers.relevance is not None and towers.text is not None:
            captions = torch.ones(len(video), towers.text.width, device=video.device)
            maps["relevance"] = towers.relevance(video, captions, masker.grid)
        return maps

    return compute


def _savings(config: Config, video: Tensor, device: torch.device, step: Callable[[], Any]) -> list[Timed]:
    """Return each cheaper computation of relevance for text-guided masking, without its mask."""
    grid, guidance = shape_of(config).grid, config.guidance
    assert guidance.towers is not None
    load = partial(load_image_tower, tower_folder(guidance.towers), device)
    image, half = load(torch.float32), load(torch.bfloat16)
    smaller = max(image.image_size // 2 // image.patch, 1) * image.patch
    captions = torch.ones(len(video), image.width, device=device)
    ways = {
        "relevance: every frame, fp32": Relevance(image, guidance.scorer),
        "relevance: one frame a tubelet": Relevance(image, guidance.scorer, "one"),
        f"relevance: at {smaller} pixels": Relevance(image, guidance.scorer, resolution=smaller),
        "relevance: bf16": Relevance(half, guidance.scorer),
        "relevance: compiled": Relevance(load(torch.float32, compiled=True), guidance.scorer),
        "relevance: bf16, compiled": Relevance(load(torch.bfloat16, compiled=True), guidance.scorer),
        "relevance: one frame, bf16": Relevance(half, guidance.scorer, "one"),
    }

    def timed(way: Relevance) -> Callable[[], Tensor]:
        return lambda: way(video, captions, grid)

    return [
        *(Timed(name, timed(way)) for name, way in ways.items()),
        _own_stream(timed(ways["relevance: bf16"]), step, device),
        Timed("relevance: cached", None),
    ]


def _own_stream(compute: Callable[[], Any], step: Callable[[], Any], device: torch.device) -> Timed:
    """Return relevance on its own stream during a step, as in training.prefetch, timed by what it adds to the step."""
    name = "relevance: bf16, own stream"
    if device.type != "cuda":
        return Timed(name, None, unmeasured="not measured: needs CUDA")
    side = torch.cuda.Stream(device)

    def both() -> None:
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            compute()
        step()

    return Timed(name, both, overlapped=True)
