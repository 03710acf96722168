"""Settings of a preview: the configuration, the recipes, the checkpoint that reconstructs."""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from typing import Any

from tgm_scale import preview
from tgm_scale.assembly.checks import check_guidance, check_shards
from tgm_scale.assembly.joint_module import NormaliseBy
from tgm_scale.assembly.learned_masks import load_learned, needs_checkpoint
from tgm_scale.assembly.run_plan import Shape, recipe_masker, shape_of
from tgm_scale.assembly.towers import IMAGE_MAPS, Map, sees_images
from tgm_scale.config import COMMAND_LINE, Config, all_keys, apply_overrides, checked, read_tree
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import Weights
from tgm_scale.masking.recipes import RECIPES, Masker
from tgm_scale.runs.compare import NOT_THERE, differing_keys
from tgm_scale.runtime.files import check_output

DEFAULTS: dict[str, Any] = {  # ratio, frames and size as in configs/pretrain_vitb.yaml
    "run": {"dir": "-"},
    "data": {"frames": 16, "stride": 4, "size": 224},
    "masking": {"recipe": "text_guided", "mask_ratio": 0.6},
    "objective": {"contrastive_weight": 0.0},
    "train": {"steps": 1},
}
_OF_A_RUN = (
    "data",
    "guidance",
    "masking",
    "model",
    "objective",
)  # sections of a checkpoint's configuration that a preview uses
# keys on which masks and clips depend
_COMPARED = ("masking.", "guidance.", "data.stride", "data.sampling", "data.standardise")
_NOT_COMPARED = ("guidance.cached", "guidance.compile")  # a preview sets these itself
_NOT_OF_A_PREVIEW = ("data.synthetic", "data.cache", "data.decoder")  # a preview makes no corpus and keeps no bytes
MOST_CLIPS = 100


@dataclass(frozen=True)
class Settings:
    """Settings of one preview."""

    config: Config
    maskers: list[Masker]  # the recipes given, in order
    weights: Weights | None
    learned: dict[str, Map]  # maps of a learned mask, by name
    other_than_run: list[str]  # a sentence on the differences from the checkpoint's run

    @property
    def speaks(self) -> bool:
        """Whether captions are used."""
        return any("relevance" in masker.needs for masker in self.maskers)

    @property
    def needs(self) -> set[str]:
        return set().union(*(masker.needs for masker in self.maskers))

    @property
    def normalise_by(self) -> NormaliseBy:
        """Statistics that normalise the checkpoint's targets: those of the patch or of the clip."""
        of_run = (self.weights.config or {}) if self.weights else {}
        return (of_run.get("objective") or {}).get("normalise_by", "patch")


def resolve(options: argparse.Namespace) -> Settings:
    """Resolve the options. Raises ValueError for options that do not go together, before any data is opened."""
    if options.clips > MOST_CLIPS:
        raise ValueError(f"--clips {options.clips}: wanted at most {MOST_CLIPS}: a page holds the pictures of each")
    check_output("--output", options.output, "HTML page")
    weights = _weights(options.checkpoint) if options.checkpoint else None
    config = _config(options, weights)
    check_shards(config.data)
    maskers = _maskers(config, options)
    learned: dict[str, Map] = {}
    for masker in maskers:
        check_guidance(config.guidance, masker)
        if masker.learned is not None:
            learned = {} if options.checkpoint is None else load_learned(options.checkpoint, "--checkpoint ")
            if masker.learned not in learned:
                raise ValueError(needs_checkpoint(masker.name, dict.fromkeys(learned, options.checkpoint)))
    if weights is not None:
        _refuse_another_shape(options.checkpoint, weights, shape_of(config))
    return Settings(config, maskers, weights, learned, _other_than_run(config, weights, options))


def _maskers(config: Config, options: argparse.Namespace) -> list[Masker]:
    """Return maskers of the recipes given; by default the configuration's own and the usual ones it has a tower
    for."""
    own = [config.masking.recipe] if options.config or options.checkpoint else []
    given = options.recipes or [*own, *preview.RECIPES]
    names = list(RECIPES) if "all" in given else list(dict.fromkeys(given))
    maskers = [recipe_masker(config, name) for name in names]
    if "all" in given:  # of learned ones only the checkpoint's
        maskers = [masker for masker in maskers if masker.learned is None or masker.name in own]
    if own and not options.recipes and not sees_images(config.guidance):
        maskers = [masker for masker in maskers if masker.name in own or not masker.needs & IMAGE_MAPS]
    return maskers


def _config(options: argparse.Namespace, weights: Weights | None) -> Config:
    if options.config:
        tree, origin = read_tree(options.config), options.config
    else:
        tree, origin = copy.deepcopy(DEFAULTS), COMMAND_LINE
        if weights is not None:
            _lay_under(tree, weights)
    config = checked(apply_overrides(tree, options.overrides), origin, Config, options.overrides)
    guidance = config.guidance.model_copy(update={"cached": False, "compile": False})
    seed = config.run.seed if options.seed is None else options.seed
    return config.model_copy(update={"guidance": guidance, "run": config.run.model_copy(update={"seed": seed})})


def _other_than_run(config: Config, weights: Weights | None, options: argparse.Namespace) -> list[str]:
    """Return a sentence on masking and clip settings that differ from the checkpoint's own configuration."""
    trees = [config.model_dump(mode="json"), (weights.config if weights else None) or {}]
    apart = [
        f"{key}={here} (there {there})"
        for key, (here, there) in differing_keys(trees).items()
        if key.startswith(_COMPARED) and key not in _NOT_COMPARED and NOT_THERE not in (here, there)
    ]
    if not apart:
        return []
    winner = f"--config {options.config}" if options.config else "the command line"
    return [f"Not as in the run of {options.checkpoint}, since {winner} wins over it: {', '.join(apart)}."]


def _lay_under(tree: dict[str, Any], weights: Weights) -> None:
    """Set the checkpoint's clip shape, and its run's configuration if it is ours, as far as keys are still known."""
    size = weights.size
    tree["data"] |= {"frames": weights.frames, "size": weights.image_size}
    tree["model"] = {"patch": size.patch, "tubelet": size.tubelet}
    known = {*all_keys(Config)} - {*_NOT_OF_A_PREVIEW}
    for section in _OF_A_RUN:
        of_run = (weights.config or {}).get(section) or {}
        kept = {name: value for name, value in of_run.items() if f"{section}.{name}" in known}
        tree[section] = {**tree.get(section, {}), **kept}


def _weights(checkpoint: str) -> Weights:
    try:
        found = read(checkpoint)
    except ValueError as mistake:
        raise ValueError(f"--checkpoint {mistake}") from None
    if found.kind != "pretraining":
        raise ValueError(
            f"--checkpoint {checkpoint}: {found.kind} weights, without a decoder to reconstruct by: give a "
            "pretraining checkpoint"
        )
    return found


def _refuse_another_shape(checkpoint: str, weights: Weights, wanted: Shape) -> None:
    own = Shape("", weights.size, weights.frames, weights.image_size, wanted.grid)
    if _said(own) != _said(wanted):
        raise ValueError(
            f"--checkpoint {checkpoint}: a model of {_said(own)}, and the preview is of {_said(wanted)}: leave out "
            "data.frames, data.size, model.size, model.patch and model.tubelet (they are then the checkpoint's), or "
            "give a checkpoint of that shape"
        )


def _said(shape: Shape) -> str:
    size = shape.size
    return (
        f"{shape.frames} frames of {shape.image_size} pixels in tokens of {size.tubelet} x {size.patch} x {size.patch}"
    )
