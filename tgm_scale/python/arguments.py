"""Arguments of the functions for Python, looked at before the work: mistakes name the argument, what was found, and
what is wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from tgm_scale.contracts import MAX_FRAMES, MAX_SIDE, MAX_STRIDE, MAX_VIEWS
from tgm_scale.runtime.command import reported_as
from tgm_scale.runtime.files import like

_ARGUMENTS = {  # of these functions, by the key of a configuration that says the same
    "guidance.": "", "masking.": "", "data.frames": "frames", "data.size": "size", "data.root": "root",
    "data.shards": "spec", "encoder.checkpoint": "path",
}  # fmt: skip
_MOST = {"frames": MAX_FRAMES, "size": MAX_SIDE, "stride": MAX_STRIDE, "windows": MAX_VIEWS, "squares": MAX_VIEWS}


def whole_number(name: str, value: Any, least: int | None = 1) -> int:
    """Raises ValueError where it is none, below `least`, or beyond what clips and tensors hold."""
    most = _MOST.get(name, 2**63 - 1)
    wanted = "a whole number of 64 bits" if least is None else f"a whole number from {least} to {most:,}"
    least = -most if least is None else least
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise ValueError(f"{name}={value!r}: wanted {wanted}")
    return int(value)


def path_of(name: str, value: Any) -> str:
    """Raises ValueError for what names no file."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in str(value):
        raise ValueError(f"{name}={value!r}: wanted a path")
    return os.fsdecode(value)


def existing(name: str, value: Any, of: Callable[[str], str] = str) -> Path:
    """The path that is meant, by `of`. Raises FileNotFoundError where there is nothing of this name."""
    path = Path(of(path_of(name, value)))
    if not path.exists():
        raise FileNotFoundError(f"{name}={os.fspath(value)}: no such file or folder{like(path)}")
    return path


def device_of(device: Any) -> torch.device:
    """Raises ValueError for a name that is none, and for a GPU that is not there."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # what torch raises hangs on how it was built
        why = "wanted a name such as cpu or cuda" if isinstance(error, TypeError) else str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r}: {why}") from None
    return found


@contextmanager
def told() -> Iterator[None]:
    """Mistakes in the words of these functions, which have no sections of a configuration."""
    with ExitStack() as stack:
        for key, name in _ARGUMENTS.items():
            stack.enter_context(reported_as(key, name))
        yield
