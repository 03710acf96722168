"""The classifier of a finetuning run: its initial weights, parameter groups and checkpoint metadata."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from tgm_scale.assembly.parts import autoencoder, checkpoint_metadata
from tgm_scale.assembly.run_plan import Shape, shape_of
from tgm_scale.checkpoints import checkpoint
from tgm_scale.contracts import Grid
from tgm_scale.conversion.read import read_initial
from tgm_scale.evaluation.classes import names_of
from tgm_scale.evaluation.results import Clip
from tgm_scale.evaluation.settings import FinetuneConfig
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.patches import IMAGENET
from tgm_scale.models.vit import ModelOptions


class InitialModel(NamedTuple):
    """The classifier that training starts from.

    positions: frames and side of the clips that its encoder was trained on, if they differ from the run's. notes:
    lines about the weights, for the log."""

    module: VideoClassifier
    positions: Clip | None
    notes: list[str]


def initial_model(config: FinetuneConfig, classes: list[str], newest: Path | None) -> InitialModel:
    """Build the classifier: resumed from a checkpoint, with the weights of `train.init_from`, or fresh.

    Raises ValueError."""
    if newest is not None:
        positions = positions_of(checkpoint.Reader(newest).manifest)
        return InitialModel(build_classifier(config, len(classes), positions), positions, [])
    if config.train.init_from is None:  # as a pretraining run of this configuration would start
        module = build_classifier(config, len(classes), None)
        begun = autoencoder(shape_of(config), config.model, config.run.seed, None, IMAGENET)
        _load_matching(module, begun.encoder.state_dict())
        return InitialModel(module, None, ["fresh weights: nothing pretrained"])
    found = read_initial(config.train.init_from, shape_of(config).size)
    positions = None if found.clip == (config.data.frames, config.data.size) else found.clip
    try:
        module = build_classifier(config, len(classes), positions)
    except ValueError as error:
        raise ValueError(
            f"train.init_from={config.train.init_from}: trained on clips that do not fit: {error}"
        ) from None
    fresh = _load_matching(module, {key.removeprefix("model.encoder."): value for key, value in found.weights.items()})
    notes = [f"weights of {config.train.init_from}", *found.report, f"fresh weights: {', '.join(fresh)}"]
    notes += found.clips.unlike(config.data.sampling, config.data.stride, config.data.standardise)
    notes += found.begun_otherwise(config.model.initialisation)
    return InitialModel(module, positions, notes)


def build_classifier(config: FinetuneConfig, classes: int, positions: Clip | None) -> VideoClassifier:
    """Build the run's classifier with initial weights; positions are interpolated from those of other clips, if
    given."""
    size = shape_of(config).size
    return VideoClassifier(
        size,
        config.data.frames,
        config.data.size,
        classes,
        options=ModelOptions(
            attention=config.model.attention,
            activation_checkpointing=config.model.activation_checkpointing,
            drop_path=config.finetune.drop_path,
            origin=Grid.of(*positions, size.tubelet, size.patch) if positions else None,
            token_share=config.finetune.token_share,
        ),
        seed=config.run.seed,
    )


def positions_of(manifest: dict[str, Any]) -> Clip | None:
    """Return the frames and side of the clips that a checkpoint's positions come from, if it states them."""
    found = manifest.get("positions")
    return (found[0], found[1]) if found else None


def _load_matching(module: VideoClassifier, weights: dict[str, Tensor]) -> list[str]:
    """Load the weights that the classifier has, by name and shape; return the names of its other ones."""
    own = module.state_dict()
    usable = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    module.load_state_dict({**own, **usable})
    return sorted(own.keys() - usable.keys())


def layer_groups(module: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Group parameters by depth and weight decay.

    The head learns at the full rate, each layer below at `layer_decay` times that of the one above (ELECTRA, Clark et
    al. 2020, appendix; BEiT; MAE)."""
    assert isinstance(module, VideoClassifier)
    depth = len(module.blocks)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        layer = depth + 1
        if name.startswith("patch_embed"):
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        decays = sum(side > 1 for side in parameter.shape) > 1 and not name.endswith("bias")
        groups.setdefault((layer, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (depth + 1 - layer),
            "name": f"layer {layer}, {'decay' if decays else 'no decay'}",
        }
        for (layer, decays), parameters in groups.items()
    ]


def classifier_metadata(
    config: FinetuneConfig, shape: Shape, classes: list[str], positions: Clip | None
) -> dict[str, Any]:
    """Return what a reader of the checkpoint needs besides the tensors."""
    return {
        **checkpoint_metadata(config, dataclasses.replace(shape, size=shape.size.without_decoder())),
        "labels": names_of(classes, config.data.classes),
        "class_labels": classes,
        **({"positions": list(positions)} if positions else {}),
    }
