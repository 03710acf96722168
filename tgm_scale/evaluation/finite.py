"""Refusal of numbers that are not finite.

NaN compares false with everything: a retrieval of NaN is right at every rank, and its nearest class is the first.

Shapes: B clips, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_REMEDY = (
    "no figure is made of such numbers. The run may have diverged, or the file be damaged: try an earlier checkpoint"
)


def first_not_finite(rows: Tensor) -> int | None:
    """Return the first row with a value that is not finite; None if there is none, or no row."""
    if not rows.numel():  # no clip of a chunk could be decoded
        return None
    bad_N = ~rows.reshape(len(rows), -1).isfinite().all(1)
    return int(bad_N.nonzero()[0]) if bad_N.any() else None


def refuse(rows: Tensor, names: Sequence[str], what: str) -> None:
    """Raise ValueError that names the first of N rows with a value that is not finite; `names`: of the rows."""
    if (row := first_not_finite(rows)) is not None:
        raise ValueError(f"{names[row]}: {what} are not finite: {_REMEDY}")


def refuse_clip(
    name: str, models: Callable[[Tensor], object], clip_1CTHW: Tensor, modules: Sequence[nn.Module]
) -> None:
    """Raise ValueError for a clip whose output is not finite, with its name and the first such layer."""
    layer = first_layer(lambda: models(clip_1CTHW), modules)
    where = f"first in what {layer} gives" if layer else "after the last layer"
    raise ValueError(f"clip {name}: what the model gives is not finite, {where}: {_REMEDY}")


def first_layer(run: Callable[[], object], modules: Sequence[nn.Module]) -> str | None:
    """Return the first layer, in order of execution, whose output is not finite."""
    found: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return record

    handles = [
        layer.register_forward_hook(hook(name)) for module in modules for name, layer in module.named_modules() if name
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
