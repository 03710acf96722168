"""Workarounds for third-party packages: a CPU-only torch, differences between versions, and their warnings."""

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
    operators `nms` and `qnms` were never declared. Declaring their schemas suffices for our use. Call before the first
    import of torchvision, timm or transformers. Returns a text on what was done."""
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
    """Return whether `prepare_torchvision` declared operators: in other scripts `import torchvision` would fail."""
    return bool(_DECLARED)


def prepare_timm() -> None:
    """Call `prepare_torchvision`, and import timm without wandb, which timm imports where it is installed: this takes
    1.1 s and leaves two folders in TMPDIR, since a command skips the interpreter's shutdown. Call before other imports
    of timm."""
    prepare_torchvision()
    if "timm.utils" in sys.modules or "wandb" in sys.modules:
        return
    hidden: dict[str, Any] = sys.modules
    hidden["wandb"] = None  # so that its import fails, as where it is not installed
    try:
        importlib.import_module("timm.utils")
    finally:
        del hidden["wandb"]


def any_metadata(av_version: str) -> dict[str, Any]:
    """Return the arguments with which `av.open` reads a video whose title is not UTF-8: PyAV 19 reads any, and no
    longer has the argument."""
    return {"metadata_errors": "ignore"} if int(av_version.split(".")[0]) < 19 else {}
