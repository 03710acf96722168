"""Checkpoints written while the training goes on.

A save stops the training only while the state is copied to the host's memory (12 bytes a parameter, divided over the
ranks). A thread writes the copy; once all ranks' files are written, the ranks agree on that at a step and rank 0 gives
the folder its name. A kill before that leaves the checkpoint before as the newest.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tgm_scale.runtime.distributed import Control, Place
from tgm_scale.training import engine_state
from tgm_scale.training.checkpoint import FORMAT, Progress, Retention, digest, folder_of, steps_in

_TEMPORARY = ".writing-"


class Saver:
    """Writes checkpoints in `root` and drops those that need not stay. At most one is being written.

    `begin` and `finish` are collective. They raise OSError on every rank, naming the ranks and reasons, where one
    could not write; the checkpoints before stay as they are."""

    def __init__(self, root: Path, retention: Retention, place: Place, control: Control):
        self.root, self.retention, self.place, self.control = root, retention, place, control
        self._pending: _Pending | None = None

    def begin(self, engine: Any, progress: Progress, facts: dict) -> None:
        """Copy the state and write it in the background, after the save before is finished.

        facts: what a reader needs beside the tensors (the model's shape, the configuration)."""
        self.finish()
        pending = _Pending(self.root, progress, facts, self.place)
        self._agree(pending, pending.make_folder() if self.place.is_main else None)
        pending.start(_own_share(engine, self.place))
        self._pending = pending

    def written(self) -> bool:
        """Whether this rank's file is written, or failed to be: the next `finish` does not wait for this rank."""
        return self._pending is not None and self._pending.ended()

    def finish(self) -> Path | None:
        """Make the save begun last a checkpoint, waiting for it where need be. Returns its folder, or None."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        files = self.control.gather(pending.wait())
        self._refuse(pending, [entry.get("error") for entry in files])
        self._agree(pending, pending.commit(files, self.retention) if self.place.is_main else None)
        return pending.final

    def _agree(self, pending: _Pending, error: str | None) -> None:
        self._refuse(pending, self.control.gather(error))

    def _refuse(self, pending: _Pending, errors: list[str | None]) -> None:
        failed = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error]
        if not failed:
            return
        if self.place.is_main:
            shutil.rmtree(pending.work, ignore_errors=True)
        step = pending.progress.step
        raise OSError(f"checkpoint of step {step} in {self.root} not written ({'; '.join(failed)})")


class _Pending:
    """One checkpoint on its way to the disk."""

    def __init__(self, root: Path, progress: Progress, facts: dict, place: Place):
        self.root, self.facts, self.place = root, facts, place
        self.progress = replace(progress, skipped=dict(progress.skipped))  # the run's own goes on counting
        self.final = folder_of(root, progress.step)
        self.work = root / f"{_TEMPORARY}{progress.step:08d}"
        self._entry: dict[str, Any] = {}
        self._thread: threading.Thread | None = None

    def make_folder(self) -> str | None:
        try:
            for left_over in self.root.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(left_over)
            self.work.mkdir(parents=True)
        except OSError as error:
            return str(error)
        return None

    def start(self, share: dict[str, Tensor]) -> None:
        name = f"state-{self.place.rank:05d}-of-{self.place.world_size:05d}.safetensors"
        # a daemon: a run that fails must not wait for a disk
        self._thread = threading.Thread(target=self._write, args=(share, self.work / name), daemon=True)
        self._thread.start()

    def ended(self) -> bool:
        assert self._thread is not None
        return not self._thread.is_alive()

    def wait(self) -> dict[str, Any]:
        """This rank's entry in the manifest, or the error that kept its file from being written."""
        assert self._thread is not None
        self._thread.join()
        assert self._entry, "the thread that writes the checkpoint failed; its traceback is above"
        return self._entry

    def _write(self, share: dict[str, Tensor], file: Path) -> None:
        try:
            save_file(share, file)
            _sync(file)
            self._entry = {"name": file.name, "bytes": file.stat().st_size, "blake2b": digest(file)}
        except (OSError, SafetensorError) as error:
            self._entry = {"error": str(error)}

    def commit(self, files: list[dict[str, Any]], retention: Retention) -> str | None:
        """Write the manifest, give the folder its name and drop old checkpoints; the error where that failed."""
        manifest = {"format": FORMAT, "progress": asdict(self.progress), "files": files, **self.facts}
        try:
            (self.work / "manifest.json").write_text(json.dumps(manifest, indent=1))
            _sync(self.work / "manifest.json")
            _sync(self.work)
            if self.final.exists():
                shutil.rmtree(self.final)
            self.work.rename(self.final)
            _sync(self.root)
            for step in retention.dropped(steps_in(self.root)):
                shutil.rmtree(folder_of(self.root, step))
        except OSError as error:
            return str(error)
        return None


def _own_share(engine: Any, place: Place) -> dict[str, Tensor]:
    """A copy of this rank's share of the state, on the CPU: whole parameters, dealt out in shares of like size.

    No rank holds the whole model: each parameter is gathered alone and kept by the one rank that writes it."""
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
