"""Masks of one synthetic clip under every recipe, as a film strip and an animation; and film strips of text-guided
masking: the clip, the relevance, the mask, the reconstruction.

Shapes: T frames, S slots, R rows, C columns of the token grid, H W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tgm_scale.assembly.learned_masks import load_learned, needs_checkpoint
from tgm_scale.assembly.run_plan import recipe_masker, run_masker, shape_of
from tgm_scale.assembly.towers import Map, load_towers
from tgm_scale.config import Config, from_tree
from tgm_scale.contracts import Grid
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import build as build_module
from tgm_scale.data.building.annotations import captions_of
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.video.decode import Video, decode_clip
from tgm_scale.data.video.encode import encode_video
from tgm_scale.data.video.motion import MotionRecorder
from tgm_scale.data.video.transforms import draw_crop
from tgm_scale.demo.corpus.make import SyntheticSpec, render_clip
from tgm_scale.demo.corpus.truth import read_truth
from tgm_scale.evaluation.masks.agreement import clip_maps
from tgm_scale.guidance.flow import check_flow
from tgm_scale.masking.recipes import RECIPES
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.report.reconstruct import reconstruct
from tgm_scale.report.render import Row, film_strip, heatmap, outlined, seen_tokens, slot_frames, veiled
from tgm_scale.runtime import seeding

SIDE, PATCH, TUBELET = 112, 8, 2
_PER_ROW, _TITLE, _GAP, _COLOURS = 5, 18, 6, 64  # layout of the animation
_INK, _PAPER = (40, 44, 52), (255, 255, 255)


@dataclass(frozen=True)
class Gallery:
    """Masks of a clip under each recipe."""

    caption: str
    strip: bytes  # PNG
    animation: bytes  # GIF
    left_out: list[str]  # recipes with missing requirements, each with the reason


def gallery(
    index: int = 0,
    mask_ratio: float = 0.75,
    towers: str = "small",
    scorer: str = "raw",
    checkpoints: Sequence[str | Path] = (),
) -> Gallery:
    """Return masks of clip `index` of a synthetic corpus, encoded and decoded as in training. checkpoints: of runs on
    such clips, for learned masks. Raises ValueError where one is of another shape, or has no learned mask."""
    spec = SyntheticSpec(size=SIDE, seed=seeding.key("gallery"))
    tree: dict[str, Any] = {
        "run": {"dir": "-"},
        "data": {"shards": "-", "frames": spec.frames, "size": SIDE},
        "guidance": {"towers": towers, "scorer": scorer},
        "masking": {"mask_ratio": mask_ratio},
        "model": {"patch": PATCH, "tubelet": TUBELET},
        "objective": {"contrastive_weight": 0.0},
        "train": {"steps": 1},
    }
    config = from_tree(tree)
    clip = render_clip(index, spec)
    recorder = MotionRecorder()
    with Video(encode_video(clip.frames, spec.fps), recorder) as video:
        indices = torch.arange(spec.frames).numpy()
        frames_THW3 = torch.stack([torch.from_numpy(image.copy()) for _, image in video.frames(indices)])
    video_CTHW = frames_THW3.permute(3, 0, 1, 2)
    grid = Grid.of(spec.frames, SIDE, TUBELET, PATCH)
    motion_Syx = recorder.slots(indices, grid.slots)
    assert motion_Syx is not None, "clips for training are H.264 with P-frames"
    motion_SRC = draw_crop("center", SIDE, SIDE, 0, flip=False).resample(motion_Syx, grid.rows, grid.columns)
    outline_THW = torch.from_numpy(clip.truth.named.visible)
    frames = slot_frames(video_CTHW, grid.slots)
    rows: list[Row] = [("the clip", outlined(frames, outline_THW[::TUBELET]))]
    films: list[Row] = [("the clip", outlined(video_CTHW.transpose(0, 1), outline_THW))]
    left_out: list[str] = []
    learned: dict[str, Map] = {}
    learned_by: dict[str, str | Path] = {}
    for checkpoint in checkpoints:
        learned |= (found := load_learned(checkpoint))
        learned_by |= dict.fromkeys(found, checkpoint)
    for recipe in RECIPES:
        source = recipe_masker(config, recipe).learned
        if source is not None and source not in learned:
            left_out.append(needs_checkpoint(recipe, learned_by))
            continue
        own = {} if source is None else {source: learned[source]}
        hidden_SRC, reason = _hidden(config, recipe, (video_CTHW, motion_SRC, clip.captions[0]), own)
        if hidden_SRC is None:
            left_out.append(f"{recipe}: {reason}")
            continue
        rows.append((recipe, veiled(frames, ~hidden_SRC)))
        films.append((recipe, veiled(video_CTHW.transpose(0, 1), ~hidden_SRC.repeat_interleave(TUBELET, 0))))
    return Gallery(clip.captions[0], film_strip(rows, side=SIDE), _animation(films), left_out)


def _hidden(
    config: Config, recipe: str, clip: tuple[Tensor, Tensor, str], learned: Mapping[str, Map]
) -> tuple[Tensor | None, str]:
    """Return the tokens that a recipe hides, bool [S, R, C], or why there are none. clip: its video, motion and
    caption."""
    masker = recipe_masker(config, recipe)
    try:
        if "flow" in masker.needs:
            check_flow(config.guidance.flow)
    except ValueError as missing:
        return None, str(missing)
    models = load_towers(config.guidance, masker.needs, embed_captions=False, device=torch.device("cpu"))
    models.maps |= learned
    maps = clip_maps(masker, models, *clip)
    assert maps is not None
    return masker.hidden(torch.tensor([seeding.key("gallery", recipe)]), **maps)[0], ""


def _animation(films: Sequence[Row], milliseconds: int = 160) -> bytes:
    """Return a GIF of films side by side, each with its name above it."""
    font = ImageFont.load_default(size=12)
    across, down = min(len(films), _PER_ROW), -(-len(films) // _PER_ROW)
    size = (across * (SIDE + _GAP) - _GAP, down * (SIDE + _TITLE + _GAP) - _GAP)
    pictures = []
    for t in range(len(films[0][1])):
        sheet = Image.new("RGB", size, _PAPER)
        draw = ImageDraw.Draw(sheet)
        for number, (name, frames_TCHW) in enumerate(films):
            left, top = (number % _PER_ROW) * (SIDE + _GAP), (number // _PER_ROW) * (SIDE + _TITLE + _GAP)
            draw.text((left, top + _TITLE / 2), name, _INK, font, anchor="lm")
            sheet.paste(Image.fromarray(frames_TCHW[t].permute(1, 2, 0).contiguous().numpy()), (left, top + _TITLE))
        pictures.append(sheet)
    palette = pictures[0].quantize(_COLOURS)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return stream.getvalue()


@dataclass(frozen=True)
class Strip:
    """Film strip of one test clip with its caption."""

    png: bytes
    caption: str


def strips(config: Config, checkpoint: str | Path, corpus: Corpus) -> list[Strip]:
    """Return a strip for each clip of a synthetic corpus, masked and reconstructed as in the run of this
    configuration."""
    cpu = torch.device("cpu")
    model = build_module(read(checkpoint))
    assert isinstance(model, MaskedVideoAutoencoder), checkpoint
    grid, masker = shape_of(config).grid, run_masker(config)
    towers = load_towers(config.guidance, masker.needs | {"relevance"}, embed_captions=True, device=cpu)
    assert towers.text is not None and towers.relevance is not None
    made = []
    for ref in corpus.refs:
        members = corpus.read(ref, [ref.video, "json"])
        caption = captions_of(members)[0]
        clip = decode_clip(members[ref.video], config.data.frames, config.data.stride, 0.0)
        video_1CTHW = torch.from_numpy(clip.video).permute(3, 0, 1, 2)[None].contiguous()
        named_THW = torch.from_numpy(read_truth(members["json"]).named.visible[clip.indices])
        relevance_1SRC = towers.relevance(video_1CTHW, towers.text.encode([caption]), grid)
        seed = torch.tensor([seeding.key("film strip", ref.name)])
        mask = masker(seed, relevance=relevance_1SRC)
        frames = slot_frames(video_1CTHW[0], grid.slots)
        completed_1CTHW = reconstruct(model, video_1CTHW, mask, config.objective.normalise_by)
        rows = [
            ("clip", outlined(frames, named_THW[:: config.data.frames // grid.slots])),
            ("relevance", heatmap(frames, relevance_1SRC[0])),
            ("what the\nencoder sees", veiled(frames, seen_tokens(mask.visible[0], grid))),
            ("reconstruction", slot_frames(completed_1CTHW[0], grid.slots)),
        ]
        made.append(Strip(film_strip(rows), caption))
    return made
