"""The checkpoint: named fp32 tensors in safetensors, sharded over ranks, loadable at any stage and world size.

    RUN/checkpoints/step-00000500/
        manifest.json                      what it is, written last
        state-00000-of-00008.safetensors   NAME.weight, NAME.exp_avg, NAME.exp_avg_sq of this file's share of the names

`saver.py` writes it, in a temporary folder that is fsynced and renamed, so a folder with this name is whole.
DeepSpeed's own checkpoint files are not used: they are pickles, bound to one stage and world size.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from tgm_scale.runtime.distributed import Control
from tgm_scale.training import engine_state

FORMAT = 1
_PREFIX = "step-"


@dataclass
class Progress:
    """All of a run's state that is not weights: one small object. The data's position is the step."""

    step: int = 0
    updates: int = 0  # that were made: Adam's own count. Less than `step` where updates were refused
    skipped: dict[str, int] = field(default_factory=dict)  # broken samples so far, by reason


def folder_of(root: Path, step: int) -> Path:
    return root / f"{_PREFIX}{step:08d}"


def steps_in(root: Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, ascending."""
    return sorted(int(p.parent.name[len(_PREFIX) :]) for p in root.glob(f"{_PREFIX}*/manifest.json"))


def latest(root: Path) -> Path | None:
    steps = steps_in(root)
    return folder_of(root, steps[-1]) if steps else None


def latest_for_all(root: Path, control: Control) -> Path | None:
    """`latest` as rank 0 sees it: on a network file system others may see an older listing. Collective."""
    return control.gather(latest(root) if control.place.is_main else None)[0]


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `newest`, and those whose step is a multiple of `multiples_of`."""

    newest: int
    multiples_of: int | None = None

    def dropped(self, steps: list[int]) -> list[int]:
        old = sorted(steps)[: -self.newest]
        return [step for step in old if self.multiples_of is None or step % self.multiples_of]


def digest(path: Path) -> str:
    """The hash of a file that the manifest keeps: blake2b of 16 bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class Reader:
    """The tensors of a checkpoint by name, read one at a time. Raises ValueError for a folder that is not whole."""

    def __init__(self, folder: Path):
        self.folder = folder
        file = folder / "manifest.json"
        if not file.is_file():
            raise ValueError(f"{folder}: not a checkpoint of this project (no manifest.json)")
        self.manifest = json.loads(file.read_text())
        if self.manifest.get("format") != FORMAT:
            raise ValueError(f"{file}: format {self.manifest.get('format')}, this version reads {FORMAT}")
        self._of: dict[str, Any] = {}
        for entry in self.manifest["files"]:
            path = folder / entry["name"]
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise ValueError(f"{path}: missing or cut short; remove {folder} to go on from the checkpoint before")
            stream = safe_open(path, framework="pt")
            self._of |= dict.fromkeys(stream.keys(), stream)

    @property
    def progress(self) -> Progress:
        told = self.manifest["progress"]
        return Progress(**{"updates": told["step"], **told})  # checkpoints of before counted steps alone

    def names(self) -> list[str]:
        return sorted(key.removesuffix(".weight") for key in self._of if key.endswith(".weight"))

    def tensor(self, name: str, part: str = "weight") -> Tensor:
        key = f"{name}.{part}"
        if key not in self._of:
            raise ValueError(f"{self.folder}: no tensor {key}; the checkpoint is of another model")
        return self._of[key].get_tensor(key)

    def weights(self) -> dict[str, Tensor]:
        """All weights, fp32, without the moments."""
        return {name: self.tensor(name) for name in self.names()}

    def verify(self) -> None:
        """Compare every file with its hash. Raises ValueError that names the first that differs."""
        for entry in self.manifest["files"]:
            if digest(self.folder / entry["name"]) != entry["blake2b"]:
                raise ValueError(f"{self.folder / entry['name']}: contents differ from the manifest's hash")


def restore(engine: Any, folder: Path) -> Progress:
    """Set the engine to a checkpoint, at this run's own stage and world size. Collective."""
    reader = Reader(folder)
    ours = {name for name, _ in engine_state.named_parameters(engine)}
    if ours != set(reader.names()):
        differing = sorted(ours ^ set(reader.names()))[:5]
        raise ValueError(f"{folder}: the checkpoint is of another model; names differ: {', '.join(differing)} ...")
    progress = reader.progress
    engine_state.write(engine, progress.step, progress.updates, reader.tensor)
    return progress
