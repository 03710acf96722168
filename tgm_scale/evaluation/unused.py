"""Keys of an evaluation that were set and have no effect."""

from __future__ import annotations

from typing import Literal

from tgm_scale.config.data_sections import Section
from tgm_scale.evaluation.settings import FrozenConfig

Part = Literal["neighbours", "probe", "retrieve"]
_COMMANDS: dict[Part, str] = {"neighbours": "knn", "probe": "probe", "retrieve": "retrieve"}
_ATTENTIVE = {"epochs", "steps", "batch_size", "learning_rates", "weight_decay", "heads"}


def tell_unused(config: FrozenConfig, part: Part) -> None:
    """Print them."""
    print("".join(f"{line}\n" for line in unused(config, part)), end="", flush=True)


def unused(config: FrozenConfig, part: Part) -> list[str]:
    """A line for each reason, of a command that reads the section `part`. A key at its default was not set."""
    data, encoder = config.data, config.encoder
    found = {
        f"by tgm-scale {_COMMANDS[part]}": [key for other in _COMMANDS if other != part for key in _set(config, other)]
    }
    if part == "retrieve":
        found["by tgm-scale retrieve"] += [f"data.{key}" for key in ("train", "share") if key in _changed(data)]
        if not config.retrieve.zero_shot:
            found["without retrieve.zero_shot=true"] = [
                key for key in _set(config, part) if key.endswith(".templates")
            ]
    elif part == "probe" and config.probe.head == "linear":
        found["by probe.head=linear"] = [key for key in _set(config, part) if key.rpartition(".")[2] in _ATTENTIVE]
    if data.sampling == "segments" and data.stride is not None:
        found["by data.sampling=segments"] = ["data.stride"]
    if encoder.checkpoint != "random" and encoder.initialisation is not None:
        found["of a checkpoint, but of encoder.checkpoint=random"] = ["encoder.initialisation"]
    return [f"not used {why}: {', '.join(keys)}" for why, keys in found.items() if keys]


def _set(config: FrozenConfig, part: Part) -> list[str]:
    return [f"{part}.{key}" for key in _changed(getattr(config, part))]


def _changed(section: Section) -> list[str]:
    fields = type(section).model_fields
    return [key for key, field in fields.items() if getattr(section, key) != field.default]
