"""Workarounds for third-party packages: with a CPU-only torch, by version, and for their warnings."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
import warnings
from typing import Any

_DECLARED: list[object] = []  # keeps the operator declarations alive


def quiet_warnings() -> None:
    """Silence the third-party warnings that no user of this project can act on."""
    for module in ("torch", "deepspeed", "transformers", "timm", "webdataset"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{module}(\..*)?")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=rf"{module}(\..*)?")


def prepare_torchvision() -> str:
    """Make `import torchvision` (hence timm and transformers' vision models) work beside a CPU-only torch.

    PyPI's torchvision links CUDA; beside a CPU torch its extension cannot load, and the import fails because the
    operators `nms` and `qnms` were never declared. Declaring their schemas is enough for all we use. Call before the
    first import of torchvision, timm or transformers. Returns what was done."""
    import torch

    if "torchvision" in sys.modules or _DECLARED:
        return "done already"
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return "not installed"
    if torch.version.cuda is not None:
        return "CUDA torch: nothing to do"
    for extension in pathlib.Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(extension))
            return "its extension loads"
        except OSError:
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)
    return "operators declared"


def torchvision_is_foreign() -> bool:
    """Whether `prepare_torchvision` had to declare operators: another script would fail at `import torchvision`."""
    return bool(_DECLARED)


def prepare_timm() -> None:
    """`prepare_torchvision`, and timm imported without wandb, which it takes where it is installed: 1.1 s, and two
    folders in TMPDIR that stay, since a command ends without the interpreter's own end. Call before other imports of
    timm."""
    prepare_torchvision()
    if "timm.utils" in sys.modules or "wandb" in sys.modules:
        return
    hidden: dict[str, Any] = sys.modules
    hidden["wandb"] = None  # its import fails, as where it is not installed
    try:
        importlib.import_module("timm.utils")
    finally:
        del hidden["wandb"]


def any_metadata(av_version: str) -> dict[str, Any]:
    """What `av.open` wants, so that a title that is not UTF-8 does not make a video unreadable: PyAV 19 reads any, and
    has the argument no more."""
    return {"metadata_errors": "ignore"} if int(av_version.split(".")[0]) < 19 else {}
