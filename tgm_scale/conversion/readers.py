"""Readers from a path to a state dict. A file's type is recognised by its contents, never by its name.

Only tensors, plain containers and argparse's Namespace are unpickled (VideoMAE stores its arguments in one).
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tgm_scale.checkpoints import ema
from tgm_scale.checkpoints.checkpoint import Reader
from tgm_scale.checkpoints.folders import latest
from tgm_scale.conversion import huggingface
from tgm_scale.conversion.key_maps import MASKS, TERMS, ModelMetadata
from tgm_scale.conversion.statistics import into_patch_embedding, of_own_run
from tgm_scale.conversion.weights import OWN_ENTRY
from tgm_scale.models.classifier import HEAD_NORM, without_head_norm
from tgm_scale.runtime import launch
from tgm_scale.runtime.files import like
from tgm_scale.runtime.outside.json_text import json_object, json_of
from tgm_scale.runtime.tensors import load_with_metadata, weights_of

PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "net.")  # of DDP, torch.compile, wrappers

_STATE_KEYS = ("model", "module", "model_state", "state_dict")  # VideoMAE; DeepSpeed; PySlowFast; timm
_AVERAGE_KEYS = ("state_dict_ema", "ema", "model_ema")  # timm; VideoMAE's finetuning, which still tests `model`
_UNTESTED = ("model_ema",)
_DEEPSPEED_FILE = "mp_rank_*_model_states.pt"
_HUGGINGFACE_FILES = ("model.safetensors", "pytorch_model.bin")


class OpenedWeights(NamedTuple):
    """The state dict at a path, and the metadata that the file states."""

    tensors: dict[str, Tensor]
    metadata: ModelMetadata
    notes: list[str]


def open_weights(path: str | Path, raw: bool = False) -> OpenedWeights:
    """Open the tensors at a path, without the prefixes of wrappers.

    A path is a run folder or a checkpoint folder of this project, a transformers folder, a DeepSpeed checkpoint's
    folder, a safetensors file or a torch file. raw: take the weights as trained if averaged ones (EMA) exist, too.
    Raises ValueError for anything else."""
    found = _open_folder(Path(path), raw) if Path(path).is_dir() else _open_file(Path(path), raw)
    tensors, notes = strip_prefixes(found.tensors)
    return OpenedWeights(tensors, found.metadata, [*found.notes, *notes])


def strip_prefixes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove the prefixes of wrappers from the names, each at most once; return a note for each prefix removed.

    `encoder.` counts as one if all names have it and a classifier's norm is among them; a pretraining's is none.
    Raises ValueError if two names become one."""
    stripped: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    for name, value in tensors.items():
        left = set(PREFIXES)
        while prefix := next((p for p in left if name.startswith(p)), None):
            name = name.removeprefix(prefix)
            left.remove(prefix)
            counts[prefix] += 1
        if name in stripped:
            raise ValueError(f"{name} is there twice, with and without a prefix ({', '.join(counts)})")
        stripped[name] = value
    if "encoder.fc_norm.weight" in stripped and all(name.startswith("encoder.") for name in stripped):
        stripped = {name.removeprefix("encoder."): value for name, value in stripped.items()}
        counts["encoder."] = len(stripped)
    return stripped, [f"stripped '{prefix}' from {count} names" for prefix, count in counts.items()]


def _open_folder(folder: Path, raw: bool) -> OpenedWeights:
    own = folder if (folder / "manifest.json").is_file() else latest(folder / "checkpoints")
    if own is not None:
        return _open_own(Reader(own), raw)
    if (folder / "config.json").is_file():
        return _open_huggingface(folder, raw)
    states = sorted(folder.glob(_DEEPSPEED_FILE))
    if len(states) == 1:
        return _open_file(states[0], raw)
    if (folder / "results.json").is_file() and (folder / "owner").is_dir():
        raise ValueError(f"{folder}: an evaluation, which has no weights: give the checkpoint that it is of")
    if (folder / "owner").is_dir():
        raise ValueError(
            f"{folder}: a run without a checkpoint: it ended before its first one, or is still on the way"
        )
    raise ValueError(
        f"{folder}: not a folder that can be read. Wanted a run folder or checkpoint of this project (manifest.json), "
        f"a transformers folder (config.json) or a DeepSpeed checkpoint (one {_DEEPSPEED_FILE}, {len(states)} found)"
    )


def _open_own(reader: Reader, raw: bool) -> OpenedWeights:
    """Open the weights that the run's test used: averaged ones if the run averages; with `raw`, those as trained."""
    notes, average = (
        [f"this project's checkpoint {reader.folder}, step {reader.progress.step}"],
        ema.averaged_file(reader),
    )
    weights, averaged = None, average is not None and not raw
    if average is not None and not raw:
        if not average.is_file():
            raise ValueError(
                f"{average}: missing: the run's results are of averaged weights (finetune.ema), which lie next to its "
                "checkpoints: bring that file too, or take the weights that were not averaged (tgm-scale convert "
                "--raw)"
            )
        weights = ema.read(average.parent, reader.progress.step)
        notes.append(f"the averaged weights of {average.name}, as results.json has them (--raw takes the others)")
    elif average is not None:
        notes.append("the weights as they were trained, not the averaged ones that results.json is of")
    if weights is None:
        if launch.read(os.environ).rank == 0:
            reader.verify()  # in one process: it reads every byte, moments included
        weights = reader.weights()
    stated = ModelMetadata.from_metadata(reader.manifest)
    if HEAD_NORM in reader.manifest:
        weights = without_head_norm(weights, reader.manifest, averaged)
        notes.append("the norm before the head (finetune.head_norm) is folded into the head")
    for prefix, of_what in ((TERMS, "the objective's terms"), (MASKS, "a learned mask")):
        if beside := sorted(name for name in weights if name.startswith(prefix)):
            weights = {name: value for name, value in weights.items() if name not in beside}
            notes.append(f"left out {_by_module(beside)}: of {of_what}, and no part of the model")
    weights, more = of_own_run(weights, stated.config or {})
    return OpenedWeights(weights, stated, [*notes, *more])


def _by_module(names: list[str]) -> str:
    """Return the sorted names, grouped by module for a term or mask with several tensors."""
    groups = {part: [*of] for part, of in groupby(names, lambda name: ".".join(name.split(".")[:2]))}
    return ", ".join(of[0] if len(of) == 1 else f"{part}.* ({len(of)} tensors)" for part, of in groups.items())


def _open_huggingface(folder: Path, raw: bool) -> OpenedWeights:
    files = [folder / name for name in _HUGGINGFACE_FILES if (folder / name).is_file()][:1]
    if not files:
        indices = sorted(folder.glob("*.index.json"))
        if not indices:
            raise ValueError(f"{folder}: a config.json without weights: wanted {' or '.join(_HUGGINGFACE_FILES)}")
        files = [folder / Path(name).name for name in _shares(indices[0])]
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _open_file(file, raw).tensors
    stated = huggingface.read_metadata(folder, tensors.keys())
    tensors, notes = into_patch_embedding(tensors, folder)
    return OpenedWeights(tensors, stated, [f"transformers folder {folder}", *notes])


def _open_file(file: Path, raw: bool) -> OpenedWeights:
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        near = like(file) if isinstance(error, FileNotFoundError) else ""
        raise ValueError(f"{file}: cannot be read ({error.strerror}){near}") from None
    if start[8:] != b"{":
        return _open_torch(file, raw)
    tensors, metadata = load_with_metadata(file)
    return OpenedWeights(tensors, _said(file, metadata), [f"safetensors file {file}"])


def _shares(index: Path) -> set[str]:
    names = json_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index}: wanted a weight_map of names and files")
    return set(names.values())


def _said(file: Path, metadata: dict[str, str]) -> ModelMetadata:
    try:
        facts = json_of(metadata.get(OWN_ENTRY, "{}"))
    except ValueError as error:
        raise ValueError(f"{file}: its {OWN_ENTRY} entry is damaged: {error}") from None
    return _stated(file, facts)


def _stated(file: Path, facts: Any) -> ModelMetadata:
    try:
        if not isinstance(facts, Mapping):
            raise ValueError(f"wanted an object, found {type(facts).__name__}")
        return ModelMetadata.from_metadata(facts)
    except ValueError as error:
        raise ValueError(f"{file}: its {OWN_ENTRY} entry is damaged: {error}") from None


def _open_torch(file: Path, raw: bool) -> OpenedWeights:
    contents = _load(file)
    mappings, averages = (
        [key for key in keys if isinstance(contents.get(key), Mapping) and contents[key]]
        for keys in (_STATE_KEYS, _AVERAGE_KEYS)
    )
    # a mapping of settings, of an average or a model, is no state dict
    averages, there = ([key for key in keys if _of_tensors(contents[key])] for keys in (averages, mappings))
    tested = [key for key in averages if key not in _UNTESTED]
    key = next(iter([*([] if raw else tested), *there, *averages]), next(iter(mappings), None))
    tensors = contents if key is None else contents[key]
    odd = sorted(str(name) for name, value in tensors.items() if not isinstance(value, Tensor))
    if odd or not tensors:
        raise ValueError(
            f"{file}: no state dict under {', '.join(_STATE_KEYS)}, and not one itself; keys: {odd[:8]}"
            if key is None
            else f"{file}: '{key}' holds other things than tensors: {odd[:8] or 'nothing'}"
        )
    arguments = contents.get("args") if key else None
    stated = _of_arguments(file, arguments) if isinstance(arguments, argparse.Namespace) else ModelMetadata()
    if key and OWN_ENTRY in contents:
        stated = _stated(file, contents[OWN_ENTRY])
    notes = [f"torch file {file}" + (f", state dict under '{key}'" if key else "")]
    if left := [other for other in (*averages, *there) if other != key]:
        beside = "without --raw the averaged ones" if tested else "VideoMAE's finetuning tests it"
        way = "--raw takes the others" if key in averages else beside
        notes.append(f"took '{key}' and not {', '.join(map(repr, left))}, which is there, too ({way})")
    elif raw and key in averages:
        notes.append(f"--raw: no weights as trained lie beside the averaged ones under '{key}', which are taken")
    for other in _AVERAGE_KEYS:
        if key and isinstance(contents.get(other), Mapping) and not _of_tensors(contents[other]):
            found = ", ".join(sorted(map(str, contents[other]))[:8])
            notes.append(f"'{other}' holds other things than tensors ({found}): no average is read there")
    return OpenedWeights(dict(tensors), stated, notes)


def _of_tensors(mapping: Mapping[str, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in mapping.values())


def _load(file: Path) -> dict[str, Any]:
    contents = weights_of(file, [argparse.Namespace])
    if not isinstance(contents, dict):
        raise ValueError(f"{file}: wanted a dictionary of tensors, found {type(contents).__name__}")
    return contents


def _of_arguments(file: Path, arguments: argparse.Namespace) -> ModelMetadata:
    """Return metadata from VideoMAE's arguments; timm's have another form of input_size, and no frames."""
    names = {"frames": "num_frames", "image_size": "input_size"}
    given = {ours: getattr(arguments, theirs, None) for ours, theirs in names.items()}
    try:
        return ModelMetadata.from_metadata({name: x for name, x in given.items() if isinstance(x, int)})
    except ValueError as error:
        name, _, said = str(error).partition(":")
        raise ValueError(f"{file}: args.{names[name]}:{said}") from None
