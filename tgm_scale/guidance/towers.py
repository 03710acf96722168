"""Frozen CLIP and SigLIP towers from local folders in the Hugging Face layout. The only user of their model code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgm_scale.guidance.image import ImageTower, Preprocessing, clip_trunk, siglip_trunk
from tgm_scale.guidance.text import TextTower
from tgm_scale.runtime.compat import prepare_torchvision

PARTS = {  # `model_type` of config.json -> the towers that such a folder holds
    "clip": {"text", "image"},
    "clip_text_model": {"text"},
    "clip_vision_model": {"image"},
    "siglip": {"text", "image"},
}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
CLIP_VOCABULARY = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either will do
SIGLIP_VOCABULARY = (("spiece.model",),)
LFS_POINTER = b"version https://git-lfs"


def check_folder(folder: str | Path, parts: Iterable[str] = ("text", "image")) -> str:
    """Check that a folder holds a whole CLIP or SigLIP model, and return its `model_type`.

    parts: which towers will be loaded. Raises ValueError in one line: which files are wanted, which were found."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"guidance.towers={folder}: no such folder; wanted a CLIP or SigLIP model in the Hugging Face layout "
            "(config.json, model.safetensors, preprocessor_config.json and the tokenizer's files), or 'small' for the "
            "packaged one"
        )
    found = sorted(path.name for path in folder.iterdir() if path.is_file())
    if "config.json" not in found:
        raise ValueError(f"guidance.towers={folder}: missing config.json; {_listed(found)}")
    for name in found:
        if name.endswith((".safetensors", ".bin", ".model", ".json", ".txt")) and _is_pointer(folder / name):
            raise ValueError(
                f"guidance.towers={folder}: {name} is a git LFS pointer, not the file: run 'git lfs pull'"
            )
    kind = _read_json(folder / "config.json").get("model_type")
    if kind not in PARTS:
        raise ValueError(
            f"guidance.towers={folder}: config.json says model_type={kind!r}; wanted one of {', '.join(PARTS)}"
        )
    for part in parts:
        if part not in PARTS[kind]:
            raise ValueError(f"guidance.towers={folder}: a {kind} folder has no {part} tower; wanted a whole model")
    missing = _missing_weights(folder, found)
    if "text" in parts:
        missing += _missing_vocabulary(found, SIGLIP_VOCABULARY if kind == "siglip" else CLIP_VOCABULARY)
    if "image" in parts and "preprocessor_config.json" not in found:
        missing.append("preprocessor_config.json")
    if missing:
        raise ValueError(
            f"guidance.towers={folder}: half a {kind} model: missing {', '.join(missing)}; {_listed(found)}"
        )
    return kind


def load_text_tower(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TextTower:
    """The text tower of a CLIP or SigLIP folder, frozen. Raises ValueError as `check_folder` does."""
    kind = check_folder(folder, ("text",))
    transformers = _transformers()
    device = torch.device(device)
    if kind == "siglip":
        model = _load(transformers.SiglipTextModel, folder, device, dtype)
        tokenizer = transformers.SiglipTokenizer.from_pretrained(folder, local_files_only=True)
        width, output = model.config.projection_size, "pooler_output"
    else:
        model = _load(transformers.CLIPTextModelWithProjection, folder, device, dtype)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        width, output = model.config.projection_dim, "text_embeds"
    length = model.config.max_position_embeddings

    def tokenize(captions: list[str]) -> Tensor:
        return tokenizer(
            captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids

    # no attention mask: CLIP's attention is causal and pools at the first end token, SigLIP was trained on padding
    return TextTower(tokenize, lambda ids_BL: getattr(model(input_ids=ids_BL), output), width, device)


def load_image_tower(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> ImageTower:
    """The image tower of a CLIP or SigLIP folder, frozen. Raises ValueError as `check_folder` does."""
    kind = check_folder(folder, ("image",))
    transformers = _transformers()
    device = torch.device(device)
    preprocessing = Preprocessing.read(_read_json(Path(folder) / "preprocessor_config.json"))
    if kind == "siglip":
        trunk = siglip_trunk(_load(transformers.SiglipVisionModel, folder, device, dtype))
    else:
        trunk = clip_trunk(_load(transformers.CLIPVisionModelWithProjection, folder, device, dtype))
    return ImageTower(trunk, preprocessing, device, compiled)


def model_files(folder: str | Path) -> list[Path]:
    """The files that decide what the towers of a checked folder compute, in order of their names."""
    folder = Path(folder)
    names = {"config.json", "preprocessor_config.json", "tokenizer_config.json"}
    names.update(name for choice in (*CLIP_VOCABULARY, *SIGLIP_VOCABULARY) for name in choice)
    weights = next(name for name in WEIGHTS if (folder / name).is_file())
    names.add(weights)
    if weights.endswith(".index.json"):
        names.update(_parts(folder))
    return sorted(folder / name for name in names if (folder / name).is_file())


def _transformers() -> Any:
    """transformers, imported late (4 s), without its progress bars and its notes on weights it was not asked for."""
    prepare_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _load(model_class: Any, folder: str | Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen model all of whose weights came from the folder: transformers would draw the others at random."""
    config = _tower_config(model_class, folder)
    try:
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in words
        )
    except Exception as error:  # whatever is wrong with a file, transformers and safetensors have many words for it
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"guidance.towers={folder}: its weights cannot be loaded: {reason}") from error
    wrong = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"guidance.towers={folder}: the weights do not fill {model_class.__name__}: {len(wrong)} missing or of "
            f"another shape, such as {wrong[0]}"
        )
    model = model.eval().requires_grad_(False).to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        # out of the file's mapping: a product's last bit depends on how its operands are aligned in memory
        tensor.data = tensor.data.clone()
    return model


def _tower_config(model_class: Any, folder: str | Path) -> Any:
    """The configuration of one tower. In a whole CLIP the width of the joint space is the model's: that of its parts,
    which a tower that is loaded alone goes by, may have been left at the default."""
    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    whole = _read_json(Path(folder) / "config.json")
    if whole["model_type"] == "clip" and "projection_dim" in whole:
        config.projection_dim = whole["projection_dim"]
    return config


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"guidance.towers={file.parent}: {file.name} is not valid JSON: {error}") from None


def _missing_weights(folder: Path, found: list[str]) -> list[str]:
    if not any(name in found for name in WEIGHTS):
        return ["model.safetensors"]
    if "model.safetensors" in found or "model.safetensors.index.json" not in found:
        return []
    return sorted(_parts(folder) - set(found))


def _parts(folder: Path) -> set[str]:
    return set(_read_json(folder / "model.safetensors.index.json").get("weight_map", {}).values())


def _missing_vocabulary(found: list[str], choices: tuple[tuple[str, ...], ...]) -> list[str]:
    lacking = [[name for name in names if name not in found] for names in choices]
    return [] if [] in lacking else [" or ".join(" and ".join(names) for names in lacking)]


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def _listed(found: list[str]) -> str:
    return f"found {', '.join(found)}" if found else "the folder is empty"
