"""torch's files from outside: tensors and plain containers, and nothing else is unpickled.

safetensors files are read by `runtime.tensors`."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def weights_of(file: Path, allowed: Sequence[type] = ()) -> Any:
    """What a torch file holds, on the CPU, mapped where that can be: what is not looked at is never read.

    allowed: classes beside tensors and plain containers. Raises ValueError, which names the file, for all that is no
    whole torch file or holds anything else; OSError where the storage does not answer."""
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0][:200]
        raise ValueError(
            f"{file}: not a torch file of tensors and plain containers; nothing else is unpickled ({reason}). "
            "Save its state dict alone, with the project that wrote it"
        ) from None
    except Exception as error:  # of damaged files RuntimeError, EOFError, struct.error, BadZipFile and more were seen
        if getattr(error, "errno", None) is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: not a whole torch file ({type(error).__name__}: {reason})") from None
