"""Film strips of text-guided masking on synthetic clips: the clip, the relevance, the mask, the reconstruction.

Shapes: T frames, S slots, R rows, C columns of the token grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tgm_scale.config import Config
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import build as build_module
from tgm_scale.data.building.annotations import captions_of
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.video.decode import decode_clip
from tgm_scale.demo.corpus.truth import read_truth
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.planning.run_plan import run_masker, shape_of
from tgm_scale.planning.towers import load_towers
from tgm_scale.report.reconstruct import reconstruct
from tgm_scale.report.render import film_strip, heatmap, outlined, seen_tokens, slot_frames, veiled
from tgm_scale.runtime import seeding


@dataclass(frozen=True)
class Strip:
    """A film strip of one test clip with its caption."""

    png: bytes
    caption: str


def strips(config: Config, checkpoint: str | Path, corpus: Corpus) -> list[Strip]:
    """One strip of each clip of a synthetic corpus, masked and reconstructed as in the run of this configuration."""
    cpu = torch.device("cpu")
    model = build_module(read(checkpoint))
    assert isinstance(model, MaskedVideoAutoencoder), checkpoint
    grid, masker = shape_of(config).grid, run_masker(config)
    towers = load_towers(config.guidance, masker.needs | {"relevance"}, contrastive=True, device=cpu)
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
