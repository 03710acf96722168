"""`masks evaluate`: how well every recipe's masks find the object in videos with annotated pixels."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tgm_scale.assembly.learned_masks import load_learned, needs_checkpoint
from tgm_scale.assembly.run_plan import recipe_masker, shape_of
from tgm_scale.assembly.towers import IMAGE_MAPS, Map, Towers, load_towers, sees_images
from tgm_scale.config import Config, apply_overrides, from_tree, read_tree
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.shards.inventory import LEFT_OUT, Inventory, refuse_above, write_left_out
from tgm_scale.data.video.decode import DecodeError
from tgm_scale.evaluation.intervals import paired_interval
from tgm_scale.evaluation.masks.agreement import (
    SIZES,
    ClipScore,
    RecipeScore,
    centre_score,
    clip_maps,
    score_clip,
    summarise,
    upper_bound,
)
from tgm_scale.evaluation.masks.annotated import Annotated, AnnotatedClip, clips, find
from tgm_scale.guidance.flow import check_flow
from tgm_scale.guidance.image import SCORERS
from tgm_scale.masking.recipes import RECIPES, Masker
from tgm_scale.report.render import Row, film_strip, outlined, slot_frames, veiled
from tgm_scale.runtime.files import check_folder, replace_file
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import escaped

DEFAULTS: dict[str, Any] = {
    "run": {"dir": "-"},
    "data": {"shards": "-", "frames": 16, "stride": 2, "size": 224},
    "masking": {"mask_ratio": 0.75},
    "objective": {"contrastive_weight": 0.0},
    "train": {"steps": 1},
}


@dataclass
class EvaluatedRecipe:
    """One line of the table: a recipe with the models that compute its maps."""

    label: str
    masker: Masker
    towers: Towers


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate the recipes and return the exit code. Raises ValueError for wrong options, or if nothing can run."""
    if options.clips < 1:
        raise ValueError(f"--clips {options.clips}: wanted at least 1")
    if options.output:
        check_folder("--output", options.output)
    tree = apply_overrides(read_tree(options.config) if options.config else DEFAULTS, options.overrides)
    config = from_tree(tree, options.config or "masks evaluate")
    found = find(options.videos, options.masks or options.videos, options.captions)
    opened = _report_data(found, config, options)
    recipes, left_out = _recipes(config, options)
    for line in left_out:
        print(escaped(f"left out: {line}"), file=sys.stderr)
    if not recipes:
        raise ValueError("no recipe can run: see what was left out")
    scores: dict[str, list[ClipScore]] = {}
    data = config.data
    sampling = Sampling(
        data.frames,
        data.stride,
        data.size,
        shape_of(config).grid,
        seed=0,
        segments=data.sampling == "segments",
        standardise=data.standardise,
    )
    plain = recipe_masker(config, "tube")
    with ProgressBars() as bars:
        task = bars.task("videos", len(found.pairs))
        for file, truth in list(found.pairs):
            for number, clip in enumerate(_clips(found, file, truth, options.clips, sampling)):
                scores.setdefault("centre box", []).append(centre_score(plain, clip.name, clip.object_SRC))
                scores.setdefault("most possible", []).append(upper_bound(plain, clip.name, clip.object_SRC))
                pictures = _score(recipes, clip, found.captions.get(file.stem), scores)
                if options.output and number == 0:
                    options.output.mkdir(parents=True, exist_ok=True)
                    (options.output / f"{file.stem}.png").write_bytes(film_strip(pictures))
            task.advance()
    if len(found.problems) > sum(opened.left_out.values()):
        opened = _report_data(found, config, options)
    if not scores:
        raise ValueError("no video can be evaluated: see what was left out")
    summaries = {label: summarise(of_label) for label, of_label in scores.items()}
    print(escaped(_table(summaries)))
    for label in (label for label in summaries if label.startswith("text_guided")):
        print(escaped(_conclusion(label, summaries[label])))
    if options.output:
        of_clips = {label: [asdict(score) for score in of_label] for label, of_label in scores.items()}
        figures = {label: asdict(summary) for label, summary in summaries.items()}
        kept = {
            "recipes": figures,
            "clips": of_clips,
            "data": [opened.as_dict()],
            "config": config.model_dump(mode="json"),
        }
        replace_file(options.output / "figures.json", json.dumps(kept, indent=1) + "\n")
    return 0


def _report_data(found: Annotated, config: Config, options: argparse.Namespace) -> Inventory:
    """Print what was opened and left out, and list it in OUTPUT/left_out.jsonl.

    Raises ValueError if more than data.max_left_out_share is left out."""
    opened = found.inventory(str(options.output / LEFT_OUT) if options.output else "")
    if options.output and found.problems:
        write_left_out(options.output / LEFT_OUT, [(opened.part, found.problems)])
    refuse_above([opened], config.data.max_left_out_share)
    print("\n".join(opened.lines()), flush=True)
    return opened


def _clips(found: Annotated, file: Path, truth: Path, count: int, sampling: Sampling) -> list[AnnotatedClip]:
    """Return the clips of one video; a video without any is left out."""
    try:
        of_video = list(clips(file, truth, count, sampling))
    except DecodeError as error:
        found.leave_out(file, error.reason, error.detail)
        return []
    if not of_video:
        found.leave_out(file, "object_not_seen", f"in none of {count} clips")
    return of_video


def _recipes(config: Config, options: argparse.Namespace) -> tuple[list[EvaluatedRecipe], list[str]]:
    """Return the recipes that can run, and why the others cannot."""
    wanted = list(RECIPES) if options.recipes == ["all"] else options.recipes
    scorers = SCORERS if options.scorers == ["all"] else options.scorers
    recipes, left_out = [], []
    device = torch.device("cpu")
    for recipe in wanted:
        masker = recipe_masker(config, recipe)
        if masker.needs & IMAGE_MAPS and not sees_images(config.guidance):
            left_out.append(f"{recipe}: needs guidance.towers=DIR, a CLIP or SigLIP folder")
            continue
        if "flow" in masker.needs:
            try:
                check_flow(config.guidance.flow)
            except ValueError as missing:
                left_out.append(f"{recipe}: {missing}")
                continue
        learned: dict[str, Map] = {}
        if masker.learned is not None:
            learned = {} if options.checkpoint is None else load_learned(options.checkpoint, "--checkpoint ")
            if masker.learned not in learned:
                left_out.append(needs_checkpoint(recipe, dict.fromkeys(learned, options.checkpoint)))
                continue
        for scorer in scorers if "relevance" in masker.needs else [None]:
            guidance = config.guidance.model_copy(update={"scorer": scorer or config.guidance.scorer, "cached": False})
            towers = load_towers(guidance, masker.needs, config.objective.contrastive_weight > 0, device)
            towers.maps |= learned
            recipes.append(EvaluatedRecipe(f"{recipe} ({scorer})" if scorer else recipe, masker, towers))
    return recipes, left_out


def _score(
    recipes: Sequence[EvaluatedRecipe], clip: AnnotatedClip, caption: str | None, scores: dict[str, list[ClipScore]]
) -> list[Row]:
    """Add each recipe's score of a clip; return the rows of its picture sheet."""
    frames = slot_frames(clip.video, clip.object_SRC.shape[0])
    rows: list[Row] = [("the clip", outlined(frames, clip.object_THW[:: clip.object_THW.shape[0] // len(frames)]))]
    for one in recipes:
        maps = clip_maps(one.masker, one.towers, clip.video, clip.motion_SRC, caption)
        if maps is None:
            continue
        scores.setdefault(one.label, []).append(score_clip(one.masker, clip.name, clip.object_SRC, maps))
        hidden = one.masker.hidden(torch.tensor([0]), **maps)[0]
        rows.append((one.label.replace(" (", "\n("), veiled(frames, ~hidden)))
    return rows


def _table(summaries: Mapping[str, RecipeScore]) -> str:
    """Return a Markdown table, ready for docs/EVALUATION.md."""
    header = ["recipe", "object hidden", "lift", "less the centre box's [95 %]", *SIZES, "AUC", "pointing"]
    lines = [header, ["---"] * len(header)]
    centre = summaries["centre box"].lift_by_video
    for label, summary in summaries.items():
        gain = torch.tensor([[lift - centre[name] for name, lift in summary.lift_by_video.items()]])
        lines.append(
            [
                label,
                f"{summary.hidden:.3f}",
                f"{summary.lift:.3f}",
                "" if label == "centre box" else str(paired_interval(gain)),
                *(f"{summary.lift_by_size[size]:.2f}" if size in summary.lift_by_size else "-" for size in SIZES),
                *("-" if value is None else f"{value:.3f}" for value in (summary.auc, summary.pointing)),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _conclusion(label: str, summary: RecipeScore) -> str:
    if not summary.auc_by_video:
        return f"{label}: no slot has both the object and others"
    mean, low, high = paired_interval(torch.tensor([list(summary.auc_by_video.values())]))
    where = "at the object" if low > 0.5 else "at the background" if high < 0.5 else "no way that these clips tell"
    return f"{label}: the relevance points {where} (AUC {mean:.2f}, 95 % [{low:.2f}, {high:.2f}]; 0.5 is chance)"
