"""Content of a folder of a CLIP, a SigLIP or a text encoder, in the Hugging Face layout: required and missing
files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tgm_scale.guidance import sentence_folder
from tgm_scale.guidance.folder_files import WEIGHTS, read_json, stand_in_of, weights_of
from tgm_scale.guidance.sentence_folder import ENCODERS
from tgm_scale.runtime.files import like
from tgm_scale.runtime.outside.json_text import bounded

SMALL_TOWERS = Path(__file__).parents[1] / "assets" / "small_clip"
SMALL_KNOWS = (
    "guidance.towers=small is the CLIP that comes with the package. It has seen synthetic shapes and nothing of real "
    "video"
)
PARTS = {  # `model_type` of config.json -> the towers that such a folder holds
    "clip": {"text", "image"},
    "clip_text_model": {"text"},
    "clip_vision_model": {"image"},
    "siglip": {"text", "image"},
    **{kind: {"text"} for kind in ENCODERS},
}
CLIP_VOCABULARY = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either will do
SIGLIP_VOCABULARY = (("spiece.model",),)
SIGLIP_2_VOCABULARY = (("tokenizer.json",),)
PREPROCESSING = (
    "processor_config.json",
    "preprocessor_config.json",
)  # the first may hold the second, as written by transformers 5


def check_folder(folder: str | Path, parts: Iterable[str] = ("text", "image")) -> str:
    """Check that a folder holds a whole CLIP or SigLIP model, or text encoder, and return its `model_type`.

    parts: which towers will be loaded. Raises a one-line ValueError with the required and the existing files."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"guidance.towers={folder}: no such folder{like(folder)}; wanted a CLIP or SigLIP model in the Hugging "
            "Face layout (config.json, model.safetensors, preprocessor_config.json and the tokenizer's files), or "
            "'small' for the packaged one; or, for the contrast alone, a text encoder such as a BERT"
        )
    found = sorted(path.name for path in folder.iterdir() if path.is_file())
    if "config.json" not in found:
        raise ValueError(f"guidance.towers={folder}: missing config.json; {_listed(found)}")
    kind = read_json(folder / "config.json").get("model_type")
    if kind == "siglip2":
        raise ValueError(
            f"guidance.towers={folder}: a SigLIP 2 of variable resolution (NaFlex), which takes patches: "
            "give one of fixed resolution, such as siglip2-base-patch16-256"
        )
    if kind not in PARTS:
        raise ValueError(
            f"guidance.towers={folder}: config.json says model_type={kind!r}; wanted one of {', '.join(PARTS)}"
        )
    for part in parts:
        if part not in PARTS[kind]:
            wanted = "a CLIP or SigLIP: a text encoder serves captions alone" if kind in ENCODERS else "a whole model"
            raise ValueError(f"guidance.towers={folder}: a {kind} folder has no {part} tower; wanted {wanted}")
    weights = any(name in found for name in WEIGHTS)
    missing = sorted(_parts(folder) - set(found)) if weights else ["model.safetensors"]
    if "text" in parts:
        missing += _missing_vocabulary(found, vocabulary(folder, kind))
    steps = _steps(folder, kind)
    missing += [name for name in steps if not (folder / name).is_file()]
    if "image" in parts and image_settings(folder) is None:
        missing.append("preprocessor_config.json (or a processor_config.json with an image_processor)")
    if missing:
        raise ValueError(
            f"guidance.towers={folder}: half a {kind} model: missing {', '.join(missing)}; {_listed(found)}"
        )
    used = {weights_of(folder), *(_parts(folder))}
    if "text" in parts:
        used.update(name for choice in vocabulary(folder, kind) for name in choice)
        used.add("tokenizer_config.json")
    for name in sorted(used & set(found) | set(steps)):
        if other := stand_in_of(folder / name):
            raise ValueError(f"guidance.towers={folder}: {name} is {other}")
    if kind in ENCODERS:
        sentence_folder.read(folder)
    return kind


def has_image_tower(folder: str | Path) -> bool:
    """Return whether the folder has an image tower. Raises ValueError as `check_folder` does for a folder without
    any tower."""
    return "image" in PARTS[check_folder(folder, ())]


def vocabulary(folder: Path, kind: str) -> tuple[tuple[str, ...], ...]:
    """Return the tokenizer's files, as alternatives."""
    if kind in ENCODERS:
        return sentence_folder.VOCABULARY
    if kind != "siglip":
        return CLIP_VOCABULARY
    return SIGLIP_2_VOCABULARY if has_gemma_tokenizer(folder) else SIGLIP_VOCABULARY


def has_gemma_tokenizer(folder: Path) -> bool:
    """Return whether a SigLIP is a SigLIP 2: their models have the same architecture, their tokenizers differ."""
    file = folder / "tokenizer_config.json"
    name = str(read_json(file).get("tokenizer_class", "")) if file.is_file() else ""
    return name.startswith(("Gemma", "Siglip2"))


def image_settings(folder: Path) -> dict[str, Any] | None:
    """Return a folder's settings of image preprocessing; None if it has none."""
    nested, plain = (folder / name for name in PREPROCESSING)
    inner = read_json(nested).get("image_processor") if nested.is_file() else None
    if isinstance(inner, dict):
        return inner
    return read_json(plain) if plain.is_file() else None


def is_small(name: str) -> bool:
    return tower_folder(name) == str(SMALL_TOWERS)


def tower_folder(name: str) -> str:
    """Return the folder behind `guidance.towers`: 'small' is the packaged CLIP."""
    return str(SMALL_TOWERS) if name == "small" else name


def model_files(folder: str | Path) -> list[Path]:
    """Return the files that determine the output of a checked folder's towers, sorted by name."""
    folder = Path(folder)
    names = {"config.json", *PREPROCESSING, "tokenizer_config.json"}
    names.update(name for choice in (*CLIP_VOCABULARY, *SIGLIP_VOCABULARY) for name in choice)
    names.update({weights_of(folder), *_parts(folder)})
    if (kind := read_json(folder / "config.json").get("model_type")) in ENCODERS:
        names = names - {"vocab.json", "merges.txt"} | {*sentence_folder.SETTINGS, *_steps(folder, kind)}
    return sorted(folder / name for name in names if (folder / name).is_file())


def check_vocabulary(folder: Path) -> None:
    """Raise ValueError for a vocab.json that does not number its tokens, or one whose merges.txt was truncated."""
    tokens = read_json(folder / "vocab.json")
    numbers = list(tokens.values())
    if not numbers or any(type(number) is not int for number in numbers) or min(numbers) < 0:
        raise ValueError("vocab.json: wanted a number from 0 for each token")
    if len(set(numbers)) < len(numbers):
        raise ValueError("vocab.json: two tokens have one number")
    if not (folder / "merges.txt").is_file():
        return
    lines = bounded(folder / "merges.txt").decode().split("\n")
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    if odd := [pair for pair in pairs if len(pair) != 2 or "".join(pair) not in tokens]:
        raise ValueError(f"merges.txt: {' '.join(odd[0])[:40]!r} is no pair that makes a token of vocab.json")
    made = {"".join(pair) for pair in pairs}
    words = (token.removesuffix("</w>") for token in tokens if token not in made)
    if lost := [word for word in words if len(word) > 1 and not word.startswith("<")]:
        raise ValueError(f"merges.txt: cut: no pair makes {lost[0][:40]!r}, one of {len(lost)} tokens of vocab.json")


def _parts(folder: Path) -> set[str]:
    name = weights_of(folder)
    if not name.endswith(".index.json"):
        return set()
    files = read_json(folder / name).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"guidance.towers={folder}: {name}: wanted a weight_map of names and files")
    return set(files.values())


def _steps(folder: Path, kind: str) -> list[str]:
    """Return the files of the steps after a text encoder, by their names in the folder."""
    return sentence_folder.files(folder) if kind in ENCODERS else []


def _missing_vocabulary(found: list[str], choices: tuple[tuple[str, ...], ...]) -> list[str]:
    lacking = [[name for name in names if name not in found] for names in choices]
    return [] if [] in lacking else [" or ".join(" and ".join(names) for names in lacking)]


def _listed(found: list[str]) -> str:
    return f"found {', '.join(found)}" if found else "the folder is empty"
