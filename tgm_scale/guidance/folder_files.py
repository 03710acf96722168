"""Files of a tower's folder, whatever its model: JSON, weights, and stand-ins for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgm_scale.runtime.outside.json_text import bounded, json_of
from tgm_scale.runtime.outside.stand_ins import START, stand_in

_OF_WORDS = ("vocab.json", "tokenizer.json")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # the first existing one counts, as for transformers


def tree_of(file: Path, wanted: type = dict, folder: Path | None = None) -> Any:
    """Return the content of a JSON file. folder: the tower's, if the file is not directly in it. Raises ValueError
    naming folder and file for invalid JSON, or for a value that is not of type `wanted` (an object, or a list)."""
    folder = folder or file.parent
    name = file.relative_to(folder).as_posix()
    try:
        tree = json_of(bounded(file), finite=True)
    except ValueError as error:
        raise ValueError(f"guidance.towers={folder}: {name} is not valid JSON: {error}") from None
    if not isinstance(tree, wanted):
        kind = "a JSON object" if wanted is dict else "a JSON list"
        raise ValueError(f"guidance.towers={folder}: {name}: wanted {kind}, found {type(tree).__name__}")
    return tree


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ValueError naming folder and file for anything else."""
    return tree_of(file)


def weights_of(folder: Path) -> str:
    """Return the name of the file, or of the index, that holds a folder's weights: a stand-in only where all are
    stand-ins."""
    there = [name for name in WEIGHTS if (folder / name).is_file()]
    return next((name for name in there if not stand_in_of(folder / name)), there[0])


def stand_in_of(file: Path) -> str:
    """Return the result of `stand_in` for a file. Any JSON may be a vocabulary, whose keys are words."""
    with file.open("rb") as stream:
        return stand_in(stream.read(START), json=file.name in _OF_WORDS)
