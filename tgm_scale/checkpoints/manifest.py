"""The manifest of a checkpoint, validated as a whole before any of it is used; fast sums of its files."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tgm_scale.checkpoints.folders import MANIFEST, step_of
from tgm_scale.runtime.mistakes import first_error
from tgm_scale.runtime.outside.json_text import bounded, json_of

FORMAT = 1
NAME = MANIFEST
_SIDE = 512
_BLOCK = 8 * _SIDE * _SIDE  # bytes
_LARGEST = 64 << 20  # bytes: the files of 300,000 ranks
_SHARE = re.compile(r"state-(\d{5,})-of-(\d{5,})\.safetensors")


class NewerFormat(ValueError):
    """Manifest of a later version; this version must not resume that run from an older checkpoint."""


class _File(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=255)  # plain name of a file in the folder
    bytes: int = Field(ge=0)
    blake2b: str | None = None
    sums: str | None = None  # see `sums`; absent in older checkpoints
    tensors: list[str] | None = None  # keys of the tensors in the file; absent in older checkpoints


class _Progress(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    step: int = Field(ge=0)
    updates: int = Field(0, ge=0)
    skipped: dict[str, int]
    losses: list[float] = []
    refused: list[list[str]] = []


class _Averages(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    mean: list[float] = Field(min_length=1)
    square: list[float] = Field(min_length=1)
    weight: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _of_one_width(self) -> _Averages:
        if len(self.mean) != len(self.square):
            raise ValueError(f"{len(self.mean)} means and {len(self.square)} squares: wanted as many of both")
        return self


class _HeadNorm(BaseModel):
    """Statistics of a classifier's features (`finetune.head_norm`), for the last and for the averaged weights."""

    model_config = ConfigDict(strict=True, extra="forbid")
    last: _Averages
    averaged: _Averages | None = None


class _Manifest(BaseModel):
    """Fields that every checkpoint has, and types of the optional ones."""

    model_config = ConfigDict(strict=True)
    progress: _Progress
    files: list[_File] = Field(min_length=1)
    model: dict[str, int | float | str | None] = {}
    frames: int | None = None
    image_size: int | None = None
    labels: list[str] | None = None
    class_labels: list[str] | None = None
    head_norm: _HeadNorm | None = None
    positions: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] | None = None
    config: dict[str, Any] | None = None
    blake2b: str | None = None

    @model_validator(mode="after")
    def _all_files(self) -> _Manifest:
        names = [file.name for file in self.files]
        if len(set(names)) < len(names):
            raise ValueError("a file is named twice")
        shares = [_SHARE.fullmatch(name) for name in names]
        counts = {int(share[2]) for share in shares if share}
        if counts and (
            counts != {len(names)} or {int(share[1]) for share in shares if share} != set(range(len(names)))
        ):
            raise ValueError(f"{len(names)} files are named, not all of {max(counts)}")
        return self


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint folder. Raises ValueError that names the file and its fault, NewerFormat for
    a later version's manifest, OSError where the storage does not answer."""
    file = folder / NAME
    if not file.is_file():
        raise ValueError(f"{folder}: not a checkpoint of this project (no {NAME})")
    tree = _tree(file)
    form = tree.get("format")
    if type(form) is int and form > FORMAT:
        raise NewerFormat(f"{file}: format {form}, this version reads {FORMAT}: resume with the version that wrote it")
    if form != FORMAT:
        raise ValueError(f"{file}: format {tree.get('format')}, this version reads {FORMAT}")
    try:
        found = _Manifest.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{file}: damaged: {first_error(error)}") from None
    if found.blake2b is not None and found.blake2b != digest(tree):
        raise ValueError(f"{file}: damaged: its contents differ from its own hash")
    if step_of(folder) not in (None, found.progress.step):
        raise ValueError(f"{file}: of step {found.progress.step}, in a folder of another step")
    return tree


def to_json(tree: dict[str, Any]) -> str:
    """Return the text of a manifest, with a hash of its own contents."""
    plain = json_of(json.dumps({"format": FORMAT, **tree}))
    return json.dumps({**plain, "blake2b": digest(plain)}, indent=1)


def digest(tree: dict[str, Any]) -> str:
    """Return the hash of a manifest's contents other than that hash: of its JSON with sorted keys."""
    rest = {key: value for key, value in tree.items() if key != "blake2b"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).hexdigest()


def _tree(file: Path) -> dict[str, Any]:
    try:
        tree = json_of(bounded(file, _LARGEST))
    except ValueError as error:
        raise ValueError(f"{file}: damaged: no JSON ({error})") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: damaged: wanted an object, found {type(tree).__name__}")
    return tree


def sums(path: Path) -> str:
    """Return a fast hash of a file against damage (not against attackers), in hexadecimal. Raises OSError.

    A start reads gigabytes of state, and blake2b (0.7 GB/s on one core) would take longer than the rest of resuming.
    So the file's 64-bit words are first summed by row and by column, in blocks of 512 x 512 words, and the sums are
    hashed: 9 GB/s. One changed word changes a sum of each kind; so do words or blocks that swap places. Not detected:
    changes of four words at the corners of a rectangle in a block that cancel (of their highest bits, say). `tgm-scale
    check` compares blake2b and detects those."""
    with path.open("rb") as file:
        return sums_of(file)


def sums_of(stream: io.BufferedIOBase) -> str:
    """Return the hash of `sums` for the rest of a stream."""
    found, block = hashlib.blake2b(digest_size=16), bytearray(_BLOCK)
    while size := stream.readinto(block):
        if size < _BLOCK:
            found.update(memoryview(block)[:size])
            continue
        words = np.frombuffer(block, np.uint64).reshape(_SIDE, _SIDE)
        found.update(words.sum(axis=0).data)
        found.update(words.sum(axis=1).data)
    return found.hexdigest()
