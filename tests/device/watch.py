"""Runs code on torch's `meta` device and notes where it would make the host wait for a GPU, or mix devices.

`meta` tensors have a shape and no values, so nothing can be read from them: what reads a value on the host is caught.
What only waits (a blocking copy to the device, a tensor made of a Python list there) leaves no trace on `meta`, so it
is looked for in each call and each operator. With `Watch` all of these are noted with their place in `tgm_scale`, and
the code goes on with made-up values."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import tgm_scale

META = torch.device("meta")
PACKAGE = Path(tgm_scale.__file__).parent
_FROM_LISTS = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
_COPIES = {"aten::_to_copy", "aten::copy_"}
_INDEX_OPERATORS = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Watch:
    """A context; afterwards `waits` counts the places in `tgm_scale`, "file:function", by kind of wait.

    Raises RuntimeError or NotImplementedError, as the operators do, where devices are mixed or a shape depends on
    values (a boolean index, nonzero, unique)."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self._modes = (_Calls(self), _Operators(self))

    def note(self, kind: str) -> None:
        self.waits[f"{place()}: {kind}"] += 1

    def __enter__(self) -> Watch:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


def place() -> str:
    """The innermost function of the package that is running; of the libraries where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            return f"{file.relative_to(PACKAGE)}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"


def tensors(tree: Any) -> Iterable[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


class _Calls(TorchFunctionMode):
    """Sees calls that leave no operator behind: tensors made of Python values, lists as indices."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist and args[0].device == META:
            self._watch.note("a tensor copied to the host")
            return torch.ones(args[0].shape, dtype=args[0].dtype).tolist()
        result = func(*args, **(kwargs or {}))
        if func in _FROM_LISTS and result.device == META and not isinstance(args[-1], Tensor):
            self._watch.note("a tensor of Python values made on the device")
        if func in _INDEXING and args[0].device == META:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in parts):
                self._watch.note("a list as index")
        return result


def _counts_places(name: str, args: Any) -> bool:
    """Whether an index is a mask; one number set into the places of a mask is masked_fill, which does not count."""
    masks = any(x.dtype in (torch.bool, torch.uint8) for x in tensors(args[1]))
    return masks and (name == "aten::index" or args[2].ndim > 0)


class _Operators(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, given = func._schema.name, tensors((args, kwargs))
        on_device = [x for x in given if x.device == META]
        if on_device and name in _INDEX_OPERATORS and _counts_places(name, args):
            raise RuntimeError(f"{place()}: {func} by a mask counts its places, for which the host waits")
        if name == "aten::_local_scalar_dense" and on_device:
            self._watch.note("a value read on the host")
            return torch.ones((), dtype=args[0].dtype).item()
        if name in _COPIES:
            return self._copied(func, name, args, kwargs)
        # one number of the host is an operator's scalar
        off_device = [x for x in given if x.device != META and x.ndim]
        if on_device and off_device:
            if name not in _INDEX_OPERATORS:
                raise RuntimeError(f"{place()}: {func} mixes the device with {off_device[0].device}")
            self._watch.note("an index on the host")
        return func(*args, **kwargs)

    def _copied(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        source = args[1] if name == "aten::copy_" else args[0]
        target = args[0].device if name == "aten::copy_" else torch.device(kwargs.get("device") or source.device)
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and bool(args[2]))
        if source.device == META and target != META:
            self._watch.note("a tensor copied to the host")
            if name == "aten::copy_":
                return args[0]
            return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if source.device != META and target == META and not non_blocking and source.ndim:
            self._watch.note("a blocking copy to the device")
        return func(*args, **kwargs)


def empty(shape: Iterable[int], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=META)


def video(clips: int, frames: int = 4, side: int = 32) -> Tensor:
    return empty((clips, 3, frames, side, side), torch.uint8)


def whole(count: int) -> Tensor:
    """int64 [count]"""
    return empty((count,), torch.int64)
