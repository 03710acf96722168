"""Checks of arguments of the Python API: errors name the argument, the value, and what is wanted."""

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

_ARGUMENTS = {  # argument names of the API, by the configuration key of the same meaning
    "guidance.": "", "masking.": "", "data.frames": "frames", "data.size": "size", "data.root": "root",
    "data.shards": "spec", "encoder.checkpoint": "path",
}  # fmt: skip
_MOST = {"frames": MAX_FRAMES, "size": MAX_SIDE, "stride": MAX_STRIDE, "windows": MAX_VIEWS, "squares": MAX_VIEWS}


def whole_number(name: str, value: Any, least: int | None = 1) -> int:
    """Return the number. Raises ValueError if it is not whole, below `least`, or beyond what clips and tensors
    hold."""
    most = _MOST.get(name, 2**63 - 1)
    wanted = "a whole number of 64 bits" if least is None else f"a whole number from {least} to {most:,}"
    least = -most if least is None else least
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise ValueError(f"{name}={value!r}: wanted {wanted}")
    return int(value)


def path_of(name: str, value: Any) -> str:
    """Return the path as text. Raises ValueError for values that cannot be a path."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in str(value):
        raise ValueError(f"{name}={value!r}: wanted a path")
    return os.fsdecode(value)


def existing(name: str, value: Any, of: Callable[[str], str] = str) -> Path:
    """Return the path that `of` makes of the value. Raises FileNotFoundError if it does not exist."""
    path = Path(of(path_of(name, value)))
    if not path.exists():
        raise FileNotFoundError(f"{name}={os.fspath(value)}: no such file or folder{like(path)}")
    return path


def device_of(device: Any) -> torch.device:
    """Return the device. Raises ValueError for an unknown name or a missing GPU."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch's error depends on its build
        why = "wanted a name such as cpu or cuda" if isinstance(error, TypeError) else str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r}: {why}") from None
    return found


@contextmanager
def told() -> Iterator[None]:
    """Report configuration errors under the argument names of the API, which has no sections of a configuration."""
    with ExitStack() as stack:
        for key, name in _ARGUMENTS.items():
            stack.enter_context(reported_as(key, name))
        yield
