"""Files of tensors. safetensors: the library's own error, neither an OSError nor a ValueError, is turned into one.
torch files from outside: only tensors and plain containers are unpickled."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tgm_scale.runtime.files import readable_as_its_folder
from tgm_scale.runtime.outside.stand_ins import START, stand_in


def open_tensors(file: Path) -> Any:
    """Return the library's reader of a file, which maps it. Raises ValueError where it is not a whole safetensors
    file, OSError where it cannot be read."""
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:  # the library raises this for a forbidden file, too
        file.open("rb").close()
        raise
    except SafetensorError as error:
        raise ValueError(no_weights(file) or f"{file}: not a whole safetensors file ({error})") from None


def no_weights(file: Path) -> str:
    """Return a message on a file that holds no weights at all, else "": the libraries only complain of headers."""
    with file.open("rb") as stream:
        start = stream.read(START)
    if not start:
        return f"{file}: an empty file; wanted weights: copy or write it again"
    return f"{file}: {other}" if (other := stand_in(start)) else ""


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Return all tensors of a file. Raises as `open_tensors`."""
    return load_with_metadata(file)[0]


def load_with_metadata(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors of a file, and its metadata. Raises as `open_tensors`."""
    with open_tensors(file) as stream:
        tensors = {name: tensor_in(stream, name, file) for name in stream.keys()}  # noqa: SIM118 (not a dictionary)
        return tensors, stream.metadata() or {}


def tensor_in(stream: Any, name: str, place: Path) -> Tensor:
    """Return one tensor of an open file. Raises ValueError that names `place` where it cannot be read."""
    try:
        return stream.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{place}: {name} cannot be read ({error})") from None


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file for all who may read its folder. Raises OSError, with the system's error number where the library
    gives it."""
    with writing(file):
        save_file(tensors, file, metadata)
    readable_as_its_folder(file, file.parent)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn the library's write error into an OSError that names a file or folder."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)\)", str(error))
        raise OSError(int(number[1]) if number else 0, str(error), str(place)) from None


def weights_of(file: Path, allowed: Sequence[type] = ()) -> Any:
    """Return the contents of a torch file, on the CPU, mapped where possible, so that unused tensors are never read.

    allowed: classes besides tensors and plain containers. Raises ValueError, which names the file, where it is not a
    whole torch file or holds anything else; OSError where the storage does not answer."""
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0][:200]
        raise ValueError(
            no_weights(file)
            or f"{file}: not a torch file of tensors and plain containers; nothing else is unpickled ({reason}). Save "
            "its state dict alone, with the project that wrote it"
        ) from None
    except Exception as error:  # damaged files raise RuntimeError, EOFError, struct.error, BadZipFile and more
        if getattr(error, "errno", None) is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            no_weights(file) or f"{file}: not a whole torch file ({type(error).__name__}: {reason})"
        ) from None
