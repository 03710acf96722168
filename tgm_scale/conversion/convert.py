"""Writing of weights in other formats: atomically, and only if the output, loaded back, reproduces our outputs."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tgm_scale.conversion import huggingface, timm
from tgm_scale.conversion.key_maps import ModelKind
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import OWN_ENTRY, Weights, encoder_of, outputs, with_new_head, without_extras
from tgm_scale.runtime.files import check_folder, naming, readable_as_its_folder, sync, too_long
from tgm_scale.runtime.tensors import save_tensors

_TORCH, _SAFETENSORS = (".pth", ".pt", ".bin", ".ckpt"), (".safetensors",)
TOLERANCE = 1e-3  # of the largest output; wrong heads exceed it, transformers' eps in two norms is 1e-5 of it


class Target(NamedTuple):
    """A format to write: the kinds it holds, how it is written and run, and the layer of ours that it omits."""

    kinds: tuple[ModelKind, ...]
    write: Callable[[Weights, Path], None]
    outputs: Callable[[Path, Weights], Tensor]
    omits: str | None = None
    suffixes: tuple[str, ...] = ()  # allowed for its file; none: a folder
    own: bool = False  # ours: it alone holds interpolated positions and decoders with cross-attention


class Conversion(NamedTuple):
    """Result of a conversion."""

    written: Weights  # content of the output, under our names
    left_out: list[str]  # our tensors that the format cannot hold
    difference: float  # largest absolute difference of outputs on the fixed clip, loaded back against ours
    largest: float  # largest absolute output


def _write_safetensors(weights: Weights, file: Path) -> None:
    """Write all tensors, with our metadata as one entry (safetensors reorders several)."""
    save_tensors(weights.state, file, {OWN_ENTRY: json.dumps(weights.metadata())})


def _read_outputs(path: Path, _: Weights) -> Tensor:
    return outputs(read(path))


def _write_videomae(weights: Weights, file: Path) -> None:
    """Write the state dict under `model`, as VideoMAE's scripts expect it, and our metadata. Names are equal."""
    stream = io.BytesIO()  # torch.save to a file stores its name, and does not report a full disk
    torch.save({"model": weights.state, OWN_ENTRY: weights.metadata()}, stream)
    file.write_bytes(stream.getbuffer())


TARGETS = {
    "videomae": Target(("pretraining",), _write_videomae, _read_outputs, suffixes=_TORCH),
    "videomae-finetune": Target(("classifier",), _write_videomae, _read_outputs, suffixes=_TORCH),
    "huggingface": Target(("pretraining", "classifier"), huggingface.write, huggingface.outputs),
    "timm": Target(("encoder", "classifier"), timm.write, timm.outputs, omits="patch_embed", suffixes=_SAFETENSORS),
    "safetensors": Target(
        ("pretraining", "classifier", "encoder"), _write_safetensors, _read_outputs, suffixes=_SAFETENSORS, own=True
    ),
}


class ConversionFailed(RuntimeError):
    """A model that cannot be run, or whose outputs differ from those of its source."""


def convert(source: Weights, output: str | Path, target: str, classes: int | None = None) -> Conversion:
    """Write `source` as `target` (a key of TARGETS) to a new path, load it back and compare its outputs with ours.

    classes: put a fresh head of so many classes on the encoder. Nothing is left at `output` if anything fails. Raises
    ValueError if the format cannot hold these weights or the path exists; ConversionFailed if the written weights do
    not reproduce our outputs."""
    path, chosen = Path(output), TARGETS[target]
    _refuse_taken(path)
    if said := too_long(path):
        raise ValueError(said)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}: make it first")
    check_folder("OUTPUT", path.parent)
    if (suffix := path.suffix.lower()) in (*_TORCH, *_SAFETENSORS) and suffix not in chosen.suffixes:
        other = path.with_suffix(chosen.suffixes[0] if chosen.suffixes else "")
        what = "a file of another kind" if chosen.suffixes else "a folder"
        raise ValueError(f"{path}: --to {target} writes {what}, and readers go by the name: name it {other}")
    weights = _subject(source, target, chosen.kinds, classes)
    if weights.size.decoder_attention == "cross" and not chosen.own:
        raise ValueError(
            f"--to {target}: this model's decoder has cross-attention (model.decoder_attention=cross), which the "
            "format has no place for: use --to safetensors; or leave the decoder out, with --to timm or a fresh head "
            "(--classes N)"
        )
    if weights.positions and not chosen.own:
        raise ValueError(
            f"--to {target}: these weights stand at positions interpolated from clips of {weights.positions[0]} "
            f"frames of {weights.positions[1]} pixels to {weights.frames} of {weights.image_size}; the format has no "
            "place for them, and its readers compute others: use --to safetensors"
        )
    if weights.token_share < 1 and not chosen.own:
        raise ValueError(
            f"--to {target}: this classifier reads a share of {weights.token_share:g} of a clip's tokens "
            "(finetune.token_share), and the format's readers would read all: use --to safetensors"
        )
    work = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        with naming(path):
            chosen.write(weights, work)
        expected = outputs(weights)
        difference = (chosen.outputs(work, weights) - expected).abs().max().item()
        largest = expected.abs().max().item()
        if not difference <= TOLERANCE * largest:
            raise ConversionFailed(
                f"{target}: what was written gives other outputs, {difference:.3g} apart where the largest is "
                f"{largest:.3g}; nothing was kept"
            )
        for file in [*work.iterdir()] if work.is_dir() else [work]:
            readable_as_its_folder(file, path.parent)
            sync(file)
        if work.is_dir():
            sync(work)
        _refuse_taken(path)  # by another conversion meanwhile
        work.rename(path)
    finally:
        shutil.rmtree(work) if work.is_dir() else work.unlink(missing_ok=True)
    return Conversion(weights, _left_out(source, weights, chosen), difference, largest)


def _refuse_taken(path: Path) -> None:
    if os.path.lexists(path):
        raise ValueError(f"{path}: exists already: name a new path, or remove it")


def _left_out(source: Weights, written: Weights, target: Target) -> list[str]:
    kept = {name.removeprefix("encoder.") for name in written.state}
    if target.omits:
        kept = {name for name in kept if not name.startswith(target.omits)}
    return [name for name in source.state if name.removeprefix("encoder.") not in kept]


def _subject(source: Weights, target: str, kinds: tuple[ModelKind, ...], classes: int | None) -> Weights:
    """Return the part of `source` that the format holds. Raises ValueError with a remedy if there is none."""
    if classes is not None:
        if source.kind == "classifier" or "classifier" not in kinds:
            raise ValueError(
                f"--classes puts a fresh head on an encoder: not for --to {target} of a model of kind '{source.kind}'"
            )
        return with_new_head(source, classes)
    if source.kind == "pretraining" and source.kind not in kinds and "encoder" in kinds:
        return encoder_of(source)
    if source.kind not in kinds:
        remedy = " (--classes N gives an encoder a fresh head)" if "classifier" in kinds else ""
        others = [name for name, of in TARGETS.items() if source.kind in of.kinds]
        raise ValueError(
            f"--to {target} holds a model of kind {' or '.join(kinds)}, this one is of kind '{source.kind}'{remedy}; "
            f"--to {', '.join(others)} {'hold' if others[1:] else 'holds'} it"
        )
    return source if target == "safetensors" else without_extras(source)
