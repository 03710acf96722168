"""Keys of an evaluation that are set but have no effect."""

from __future__ import annotations

from typing import Literal

from tgm_scale.config.changed import changed, not_used
from tgm_scale.data.lists.reading import is_list
from tgm_scale.evaluation.settings import FrozenConfig

Part = Literal["neighbours", "probe", "retrieve"]
_COMMANDS: dict[Part, str] = {"neighbours": "knn", "probe": "probe", "retrieve": "retrieve"}
_ATTENTIVE = ("epochs", "steps", "batch_size", "learning_rates", "weight_decay", "heads")


def tell_unused(config: FrozenConfig, part: Part) -> None:
    """Print the keys that are set but have no effect."""
    print("".join(f"{line}\n" for line in unused(config, part)), end="", flush=True)


def unused(config: FrozenConfig, part: Part) -> list[str]:
    """Return a line for each reason why keys have no effect on the command that reads the section `part`."""
    data, encoder = config.data, config.encoder
    found = {
        f"by tgm-scale {_COMMANDS[part]}": [
            key for other in _COMMANDS if other != part for key in changed(getattr(config, other), other)
        ]
    }
    if part == "retrieve":
        found["by tgm-scale retrieve"] += changed(data, "data", ("train", "share"))
        if not config.retrieve.zero_shot:
            found["without retrieve.zero_shot=true"] = changed(config.retrieve, "retrieve", ("templates",))
    elif part == "probe" and config.probe.head == "linear":
        found["by probe.head=linear"] = changed(config.probe, "probe", _ATTENTIVE)
    if not any(is_list(part) for part in (data.train, data.test)):
        found["where nothing is a list"] = changed(data, "data", ("root",))
    if data.sampling == "segments":
        found["by data.sampling=segments"] = changed(data, "data", ("stride",))
    if encoder.checkpoint != "random":
        found["of a checkpoint, but of encoder.checkpoint=random"] = changed(encoder, "encoder", ("initialisation",))
    return not_used(found)
