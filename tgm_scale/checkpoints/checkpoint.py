"""The checkpoint: named fp32 tensors in safetensors, sharded over ranks, loadable at any stage and world size.

    RUN/checkpoints/step-00000500/
        manifest.json                      the description, written last
        state-00000-of-00008.safetensors   NAME.weight, NAME.exp_avg, NAME.exp_avg_sq for this file's share of names

`saver.py` writes it to a temporary folder, which is fsynced and renamed, so a folder with this name is whole.
DeepSpeed's own checkpoint files are not used: they are pickles, bound to one stage and world size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tgm_scale.checkpoints import manifest
from tgm_scale.checkpoints.folders import step_of
from tgm_scale.checkpoints.manifest import sums
from tgm_scale.engine import state as engine_state
from tgm_scale.runtime.tensors import no_weights, open_tensors, tensor_in


@dataclass
class Progress:
    """The run's state other than weights: one small object. The position in the data is the step."""

    step: int = 0
    updates: int = 0  # updates made: Adam's own count, less than `step` where updates were refused
    skipped: dict[str, int] = field(default_factory=dict)  # broken samples so far, by reason
    losses: list[float] = field(default_factory=list)  # losses of the newest updates made, the reference for spikes
    refused: list[list[str]] = field(default_factory=list)  # samples of each refused step since the last update


def newest_whole(root: Path, damaged: dict[Path, str]) -> Reader | None:
    """Return the newest checkpoint with a valid manifest and whole files that is not in `damaged`, or None in a new
    run. Damaged ones met on the way are added to `damaged`, with the reason.

    Raises ValueError that names each where all are damaged, NewerFormat, and OSError where the storage does not
    answer: another start may be able to read the checkpoint."""
    ours = [(step, folder) for folder in root.glob("step-*") if (step := step_of(folder)) is not None]
    for _, folder in sorted(ours, reverse=True):
        if folder in damaged or not folder.is_dir():
            continue
        try:
            return Reader(folder)
        except manifest.NewerFormat:
            raise
        except ValueError as error:
            damaged[folder] = str(error)
    if damaged:
        listed = "\n  ".join(damaged.values())
        raise ValueError(
            f"{root}: every checkpoint is damaged:\n  {listed}\nRestore one of them, or move them away and start over"
        )
    return None


@dataclass(frozen=True)
class Retention:
    """Retention rule: the newest `newest` checkpoints stay, and those whose step is a multiple of `multiples_of`."""

    newest: int
    multiples_of: int | None = None

    def dropped(self, steps: list[int]) -> list[int]:
        old = sorted(steps)[: -self.newest]
        return [step for step in old if self.multiples_of is None or step % self.multiples_of]


def digest(path: Path) -> str:
    """Return the hash of a file for the manifest: 16 bytes of blake2b, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class Reader:
    """Tensors of a checkpoint by name, read one at a time. Raises ValueError for a folder that is not whole.

    checked: check and open every file. Otherwise a file is opened when one of its tensors is read: with 4,096 ranks
    that each check all 4,096 files, the storage answers 17 million requests."""

    def __init__(self, folder: Path, checked: bool = True):
        self.folder = folder
        self.manifest = manifest.read(folder)
        self._bytes = {entry["name"]: entry["bytes"] for entry in self.manifest["files"]}
        self._streams: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        for entry in self.manifest["files"]:
            stated = entry.get("tensors")  # older checkpoints do not list a file's tensors
            keys = self._open(entry["name"]).keys() if checked or stated is None else stated
            if stated is not None and {*keys} != {*stated}:
                differing = ", ".join(sorted({*keys} ^ {*stated})[:5])
                raise ValueError(f"{folder / entry['name']}: not the tensors that the manifest names: {differing}")
            self._file_of |= dict.fromkeys(keys, entry["name"])

    @property
    def opened(self) -> int:
        """Number of files opened so far."""
        return len(self._streams)

    def _open(self, name: str) -> Any:
        if name not in self._streams:
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != self._bytes[name]:
                other = no_weights(path) if path.is_file() else ""
                raise ValueError(other or f"{path}: missing or cut short: the checkpoint is damaged")
            self._streams[name] = open_tensors(path)
        return self._streams[name]

    @property
    def progress(self) -> Progress:
        told = self.manifest["progress"]
        return Progress(**{"updates": told["step"], **told})  # older checkpoints have steps only

    def names(self) -> list[str]:
        return sorted(key.removesuffix(".weight") for key in self._file_of if key.endswith(".weight"))

    def tensor(self, name: str, part: str = "weight") -> Tensor:
        key = f"{name}.{part}"
        if key not in self._file_of:
            raise ValueError(f"{self.folder}: no tensor {key}; the checkpoint is of another model")
        return tensor_in(self._open(self._file_of[key]), key, self.folder)

    def weights(self) -> dict[str, Tensor]:
        """Return all weights, fp32, without the moments."""
        return {name: self.tensor(name) for name in self.names()}

    def verify(self, share: int = 0, of: int = 1, quick: bool = False) -> None:
        """Compare share number `share` of `of` shares of the files with their hashes: by default every file. `quick`:
        compare sums where the manifest has them. Raises ValueError that names the first file that differs."""
        for entry in self.manifest["files"][share::of]:
            file = self.folder / entry["name"]
            kind, hashed = ("sums", sums) if quick and entry.get("sums") is not None else ("blake2b", digest)
            if entry.get(kind) is not None and hashed(file) != entry[kind]:
                raise ValueError(f"{file}: contents differ from the manifest's hash: the checkpoint is damaged")


def restore(engine: Any, folder: Path) -> Progress:
    """Load a checkpoint into the engine, at this run's own stage and world size. Collective."""
    reader = Reader(folder, checked=False)
    ours = {name for name, _ in engine_state.named_parameters(engine)}
    if ours != set(reader.names()):
        differing = sorted(ours ^ set(reader.names()))[:5]
        raise ValueError(f"{folder}: the checkpoint is of another model; names differ: {', '.join(differing)} ...")
    progress = reader.progress
    engine_state.write(engine, progress.step, progress.updates, reader.tensor)
    return progress
