"""The parts of a pretraining run, each built from its section of the configuration and the run's plan.

The ways a run can start, in order: 1. the newest checkpoint in its own folder; 2. `train.init_from`; 3. fresh weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.assembly.objective import build_objective
from tgm_scale.assembly.run_plan import RunPlan, Shape, run_masker
from tgm_scale.assembly.towers import Towers
from tgm_scale.config.data_sections import DataConfig
from tgm_scale.config.sections import Config, GuidanceConfig, ModelConfig, RunSettings
from tgm_scale.conversion.read import read_initial
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.shards.index import Corpus
from tgm_scale.guidance.cache import RelevanceCache, fingerprint
from tgm_scale.guidance.flow import dis_to_base
from tgm_scale.guidance.towers import tower_folder
from tgm_scale.models.local_start import start_locally
from tgm_scale.models.patches import IMAGENET, PixelStatistics
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions
from tgm_scale.objectives.term import CAPTIONS
from tgm_scale.objectives.terms import Objective
from tgm_scale.runtime.terminal import tree_without_secrets


def clip_loader(
    plan: RunPlan, data: DataConfig, guidance: GuidanceConfig, seed: int, opened: list[Corpus], steps: range
) -> ClipLoader:
    """Return a loader of this rank's batches of these steps."""
    assert plan.masker is not None
    needs, relevance = plan.masker.needs, None
    if guidance.cached and guidance.towers and "relevance" in needs:
        made_by = fingerprint(tower_folder(guidance.towers), guidance.scorer, guidance.resolution)
        one_of = plan.shape.size.tubelet if guidance.frames_per_tubelet == "one" else 1
        relevance = RelevanceCache(made_by, one_of).read
    sampling = Sampling(
        data.frames,
        data.stride,
        data.size,
        plan.shape.grid,
        seed,
        repeated_augmentation=plan.repeats,
        crop=data.crop,
        flip=data.flip,
        captions=plan.captions,
        segments=data.sampling == "segments",
        time_jitter=data.time_jitter,
        standardise=data.standardise,
        relevance=relevance,
        motion="motion" in needs,
        caption_sets=guidance.captions == "mean" and "relevance" in needs,
        flow=dis_to_base if "flow" in needs and guidance.flow == "dis" else None,
    )
    weights = [entry.weight for entry in data.corpora() if entry.weight is not None]
    samples = Samples.in_order(opened, sampling, data.window_shards, weights or None)
    return ClipLoader(samples, plan.layout, steps, workers=data.workers)


def pixel_statistics(data: DataConfig) -> PixelStatistics:
    return PixelStatistics(data.mean, data.std)


def autoencoder(
    shape: Shape, settings: ModelConfig, seed: int, embedding_width: int | None, statistics: PixelStatistics
) -> MaskedVideoAutoencoder:
    """Build the autoencoder with fresh weights keyed by the run's seed, fp32, on the CPU. embedding_width: of the text
    tower; None without a term that needs captions."""
    built = MaskedVideoAutoencoder(
        shape.size,
        frames=shape.frames,
        image_size=shape.image_size,
        options=ModelOptions(
            attention=settings.attention,
            activation_checkpointing=settings.activation_checkpointing,
            statistics=statistics,
        ),
        embedding_width=embedding_width,
        seed=seed,
    )
    if settings.initialisation == "local":
        start_locally(built)
    return built


def objective(config: Config, shape: Shape, towers: Towers) -> Objective:
    """Build the terms of the configuration, for the frozen models of the run."""
    features = 0 if towers.features is None else towers.features.width
    text = 0 if towers.text is None else towers.text.width
    return build_objective(config.objective, run_masker(config), shape.size, features, text)


def joint_module(config: Config, shape: Shape, towers: Towers, terms: Objective) -> JointModule:
    """Build the autoencoder with all that the terms learn, and a learned mask."""
    width = towers.text.width if CAPTIONS in terms.needs and towers.text is not None else None
    model = autoencoder(shape, config.model, config.run.seed, width, pixel_statistics(config.data))
    return JointModule(model, terms, config.run.seed, run_masker(config), towers.heads)


def checkpoint_metadata(config: RunSettings, shape: Shape) -> dict[str, Any]:
    """Return what a reader of the checkpoint needs besides the tensors."""
    return {
        "model": dataclasses.asdict(shape.size) | {"name": shape.name},
        "frames": shape.frames,
        "image_size": shape.image_size,
        "config": tree_without_secrets(config.model_dump(mode="json")),
    }


def initialise(module: JointModule, init_from: str, shape: Shape, data: DataConfig, initialisation: str) -> list[str]:
    """Load the weights that `train.init_from` gives; the rest stays fresh. Returns notes on what was left out, and on
    training before on other clips or from another `model.initialisation`.

    Raises ValueError where the origin's model is another one."""
    found = read_initial(init_from, shape.size)
    weights, notes, clip = found.weights, found.report, found.clip
    if clip != (shape.frames, shape.image_size):
        notes = [
            *notes,
            f"trained on clips of {clip[0]} frames of {clip[1]} pixels: positions go by a token's number, so those of "
            f"{shape.frames} frames of {shape.image_size} stand at others at first",
        ]
    notes = [*notes, *found.clips.unlike(data.sampling, data.stride, data.standardise)]
    notes += found.begun_otherwise(initialisation)
    weights = restated(weights, pixel_statistics(data))
    own = module.state_dict()
    usable = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    if not any(name.startswith("model.encoder.blocks") for name in usable):
        raise ValueError(f"train.init_from={init_from}: gives no block of this model's encoder")
    module.load_state_dict({**own, **usable})
    fresh = sorted(own.keys() - usable.keys())
    return [*notes, *([f"fresh weights: {', '.join(fresh)}"] if fresh else [])]


def restated(weights: dict[str, Tensor], statistics: PixelStatistics) -> dict[str, Tensor]:
    """Convert weights that were read, which are for ImageNet's statistics, to a run's own statistics."""
    kernel, bias = (f"model.encoder.patch_embed.proj.{part}" for part in ("weight", "bias"))
    if statistics == IMAGENET or not {kernel, bias} <= weights.keys():
        return weights
    weight, added = statistics.restated(weights[kernel], weights[bias], IMAGENET)
    return {**weights, kernel: weight, bias: added}
