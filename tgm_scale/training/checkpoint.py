"""The checkpoint: named fp32 tensors in safetensors, sharded over ranks, loadable at any stage and world size.

    RUN/checkpoints/step-00000500/
        manifest.json                      what it is, written last
        state-00000-of-00008.safetensors   NAME.weight, NAME.exp_avg, NAME.exp_avg_sq of this file's share of the names

No rank holds the whole model: each parameter is gathered alone and kept by the one rank that writes it. Everything is
written in a temporary folder, fsynced, and renamed, so a folder with this name is whole. DeepSpeed's own checkpoint
files are not used: they are pickles, bound to one stage and world size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tgm_scale.runtime.distributed import Control, Place
from tgm_scale.training import engine_state

FORMAT = 1
_PREFIX, _TEMPORARY = "step-", ".writing-"


@dataclass
class Progress:
    """All of a run's state that is not weights: one small object. The data's position is the step."""

    step: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # broken samples so far, by reason


def folder_of(root: Path, step: int) -> Path:
    return root / f"{_PREFIX}{step:08d}"


def steps_in(root: Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, ascending."""
    return sorted(int(p.parent.name[len(_PREFIX) :]) for p in root.glob(f"{_PREFIX}*/manifest.json"))


def latest(root: Path) -> Path | None:
    steps = steps_in(root)
    return folder_of(root, steps[-1]) if steps else None


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `newest`, and those whose step is a multiple of `multiples_of`."""

    newest: int
    multiples_of: int | None = None

    def dropped(self, steps: list[int]) -> list[int]:
        old = sorted(steps)[: -self.newest]
        return [step for step in old if self.multiples_of is None or step % self.multiples_of]


def save(
    engine: Any,
    progress: Progress,
    facts: dict,
    root: Path,
    retention: Retention,
    place: Place,
    control: Control,
) -> Path:
    """Write a checkpoint and drop those that need not stay. Collective; returns its folder.

    facts: what a reader needs beside the tensors (the model's shape, the configuration). Raises OSError on every rank,
    naming the ranks and reasons, where one cannot write; the checkpoints before it stay as they are."""
    final = folder_of(root, progress.step)
    work = root / f"{_TEMPORARY}{progress.step:08d}"
    if place.is_main:
        for left_over in root.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(left_over)
        work.mkdir(parents=True)
    control.barrier()
    name = f"state-{place.rank:05d}-of-{place.world_size:05d}.safetensors"
    files = control.gather(_write_share(_own_share(engine, place), work / name))
    failed = [f"rank {rank}: {entry['error']}" for rank, entry in enumerate(files) if "error" in entry]
    if failed:
        if place.is_main:
            shutil.rmtree(work, ignore_errors=True)
        raise OSError(f"checkpoint of step {progress.step} in {root} not written ({'; '.join(failed)})")
    if place.is_main:
        manifest = {"format": FORMAT, "progress": asdict(progress), "files": files, **facts}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _sync(work / "manifest.json")
        _sync(work)
        if final.exists():
            shutil.rmtree(final)
        work.rename(final)
        _sync(root)
        for step in retention.dropped(steps_in(root)):
            shutil.rmtree(folder_of(root, step))
    control.barrier()
    return final


def _write_share(tensors: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """Write one rank's file; its entry in the manifest, or the error that kept it from being written."""
    try:
        save_file(tensors, file)
        _sync(file)
        return {"name": file.name, "bytes": file.stat().st_size, "blake2b": _digest(file)}
    except (OSError, SafetensorError) as error:
        return {"error": str(error)}


def _own_share(engine: Any, place: Place) -> dict[str, Tensor]:
    """This rank's share of the state, on the CPU: whole parameters, dealt out so that the shares are of like size."""
    owner = _owners({name: _size(p) for name, p in engine_state.named_parameters(engine)}, place.world_size)
    share: dict[str, Tensor] = {}
    for name, parts in engine_state.read(engine):
        if owner[name] == place.rank:
            share |= {f"{name}.{part}": t.to("cpu", torch.float32).contiguous().clone() for part, t in parts.items()}
    return share


def _size(parameter: torch.nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # under ZeRO-3 numel() is that of the partition


def _owners(sizes: dict[str, int], world_size: int) -> dict[str, int]:
    load = [0] * world_size
    owner = {}
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        owner[name] = load.index(min(load))
        load[owner[name]] += sizes[name]
    return owner


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
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
        return Progress(**self.manifest["progress"])

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
            if _digest(self.folder / entry["name"]) != entry["blake2b"]:
                raise ValueError(f"{self.folder / entry['name']}: contents differ from the manifest's hash")


def restore(engine: Any, folder: Path) -> Progress:
    """Set the engine to a checkpoint, at this run's own stage and world size. Collective."""
    reader = Reader(folder)
    ours = {name for name, _ in engine_state.named_parameters(engine)}
    if ours != set(reader.names()):
        differing = sorted(ours ^ set(reader.names()))[:5]
        raise ValueError(f"{folder}: the checkpoint is of another model; names differ: {', '.join(differing)} ...")
    engine_state.write(engine, reader.progress.step, reader.tensor)
    return reader.progress
