"""A few fixed clips whose reconstructions are drawn during pretraining.

Shapes: B clips, S slots.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from tgm_scale.assembly.joint_module import NormaliseBy
from tgm_scale.assembly.parts import clip_loader
from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.config import Config
from tgm_scale.contracts import Batch, BatchLayout, Mask
from tgm_scale.data.shards.index import Corpus
from tgm_scale.evaluation.labelled import open_labelled
from tgm_scale.evaluation.online import knn_selection
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.report.reconstruct import reconstruct
from tgm_scale.report.render import Row, seen_tokens, slot_frames, some_slots, strip, veiled

CLIPS = 4
_LOOKED_AT = 16  # samples, of which the first whole ones are used
_SLOTS = 4  # drawn for each clip
_LETTERS, _LINES = 17, 4  # width and number of the lines of a clip's name that fit beside its pictures


def watched_clips(config: Config, plan: RunPlan, corpora: list[Corpus]) -> tuple[Batch, str]:
    """Return the first CLIPS whole clips in the order of a run with this seed, and the name of their source.

    They come from knn.test, or from the data if knn.test is not set or none of it can be used. They are the middle
    square, on the host. Raises ValueError if none of the first samples can be used."""
    if config.knn.test is not None and not config.guidance.cached:  # held out, and it has no cached relevance
        held_out = open_labelled(config.knn.test, knn_selection(config, "test"), root=config.knn.root).corpus
        if len(clips := _first_whole(config, plan, [held_out])):
            return clips, "knn.test"
    if len(clips := _first_whole(config, plan, corpora)):
        return clips, "the data"
    raise ValueError(
        f"pictures of reconstructions (log.pictures_every): none of the first {_LOOKED_AT} samples can be used: leave "
        "them out, or mend the data (`tgm-scale shards check`)"
    )


def _first_whole(config: Config, plan: RunPlan, corpora: list[Corpus]) -> Batch:
    assert plan.masker is not None
    alone = dataclasses.replace(
        plan,
        layout=BatchLayout(_LOOKED_AT, _LOOKED_AT),
        repeats=1,
        captions="relevance" in plan.masker.needs,
    )
    shown = {"workers": 0, "crop": "center", "flip": False, "repeated_augmentation": 1}
    if len(corpora) != len(config.data.corpora()):  # another place, without the data's weights
        shown["shards"] = corpora[0].origin
    data = config.data.model_copy(update=shown)
    [(_, [batch])] = clip_loader(alone, data, config.guidance, config.run.seed, corpora, range(1))
    whole = [number for number, weight in enumerate(batch.weight.tolist()) if weight]
    once = {batch.keys[number]: number for number in reversed(whole)}  # a small corpus repeats
    return _some(batch, sorted(once.values())[:CLIPS])


def _some(batch: Batch, numbers: Sequence[int]) -> Batch:
    """Return the clips of these numbers."""
    chosen = torch.tensor(numbers, dtype=torch.int64)
    lists: dict[str, Any] = {
        name: [values[number] for number in numbers]
        for name in ("captions", "keys", "caption_sets")
        if (values := getattr(batch, name)) is not None
    }
    return dataclasses.replace(batch.map(lambda tensor: tensor[chosen]), problems=[], **lists)


def drawn(
    model: MaskedVideoAutoencoder, names: Sequence[str], video_BCTHW: torch.Tensor, mask: Mask, by: NormaliseBy
) -> Image.Image:
    """Draw some frames of each clip, the tokens that the encoder sees, and the model's reconstruction."""
    completed_BCTHW = reconstruct(model, video_BCTHW, mask, by)
    grid = model.grid
    some_S = some_slots(grid.slots, _SLOTS)
    rows: list[Row] = []
    seen_BV = mask.visible.cpu()
    for label, video, completed, visible_V in zip(labels(names), video_BCTHW.cpu(), completed_BCTHW, seen_BV):
        frames = slot_frames(video, grid.slots)
        seen = veiled(frames, seen_tokens(visible_V, grid))
        of_model = slot_frames(completed, grid.slots)
        rows += [
            (f"{label}\nframes", frames[some_S]),
            ("what the\nencoder sees", seen[some_S]),
            ("reconstruction", of_model[some_S]),
        ]
    return strip(rows)


def labels(names: Sequence[str]) -> list[str]:
    """Return names of clips in lines that fit beside their pictures.

    If any is too long, the common beginning and end of all names are left out, since they do not distinguish the
    clips."""
    plain = [name.encode("ascii", "replace").decode() for name in names]
    most = _LETTERS * _LINES
    if any(len(name) > most for name in plain):
        start = _alike(plain)
        rest = [name[start:] for name in plain]
        end = _alike([name[::-1] for name in rest])
        plain = [f"{'...' * (start > 0)}{name[: len(name) - end]}{'...' * (end > 0)}" for name in rest]
    cut = [name if len(name) <= most else f"{name[: most // 2]}...{name[3 - most // 2 :]}" for name in plain]
    return ["\n".join(_lines(name)) for name in cut]


def _lines(name: str) -> list[str]:
    """Break a name after / and _ if the lines fit so, else at any letter."""
    lines = [""]
    for part in re.findall(r"[^/_]+[/_]?|[/_]", name):
        if len(lines[-1]) + len(part) > _LETTERS:
            lines.append("")
        lines[-1] += part
    if len(lines) <= _LINES and max(map(len, lines)) <= _LETTERS:
        return list(filter(None, lines))
    return [name[at : at + _LETTERS] for at in range(0, len(name), _LETTERS)]


def _alike(names: Sequence[str]) -> int:
    """Return how many letters all names begin with; 0 for a single name."""
    if len(names) < 2:
        return 0
    return next((at for at, letters in enumerate(zip(*names)) if len(set(letters)) > 1), min(map(len, names)))
