"""Checkpoints written during training.

A save stops training only while the state is copied to host memory (12 bytes per parameter, divided over the ranks).
A thread writes the copy. Once all ranks' files are written, the ranks agree on that at a step, and rank 0 renames the
folder. After a kill before that, the previous checkpoint is the newest. If a host's memory is too small for the copy,
training waits while each tensor is written as it is gathered."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tgm_scale.checkpoints import manifest
from tgm_scale.checkpoints.checkpoint import Progress, Reader, Retention, digest
from tgm_scale.checkpoints.folders import folder_of, step_of, steps_in
from tgm_scale.checkpoints.manifest import sums
from tgm_scale.checkpoints.share import RankShare, TensorFile
from tgm_scale.runtime import memory
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.runtime.files import describe_os_error, sync
from tgm_scale.runtime.tensors import save_tensors

_KEEP_FREE = 0.1  # share of a host's memory that a copy of the state must leave free
_TEMPORARY = ".writing-"
_DROPPED = ".dropped-"


class Saver:
    """Writer of checkpoints in `root`, which deletes old ones by the retention rule. At most one is in writing.

    `begin` and `finish` are collective. Where a rank cannot write, they raise OSError on every rank, naming the ranks
    and reasons; the previous checkpoints stay as they are.

    keep_free: share of a host's memory that must stay free for a copy of the state to be made."""

    def __init__(
        self,
        root: Path,
        retention: Retention,
        process: ProcessInfo,
        collectives: HostCollectives,
        keep_free: float = _KEEP_FREE,
    ):
        self.root, self.retention, self.process, self.collectives = root, retention, process, collectives
        self.keep_free = keep_free
        self._undropped: set[Path] = set()
        self._dropping: threading.Thread | None = None
        self._pending: Pending | None = None

    def begin(self, engine: Any, progress: Progress, facts: dict) -> None:
        """Copy the state and write it in the background, after finishing the previous save. A step that is already
        saved stays: rewriting it would leave none for a moment, where one is kept.

        facts: what a reader needs besides the tensors (the model's shape, the configuration)."""
        self.finish()
        if self.collectives.any(self.process.is_main and self._has(progress)):
            return
        share = RankShare(engine, self.process)
        pending = Pending(self.root, progress, facts, self.process, share.files)
        self._agree(pending, pending.make_folder() if self.process.is_main else None)
        if self._would_fit(share):
            pending.start({name: tensor.clone() for name, tensor in share})
        else:
            pending.write_now(share)
        self._pending = pending

    def _has(self, progress: Progress) -> bool:
        """Return whether this state is already a whole checkpoint, as after a stop at a step where a save was due."""
        try:
            return Reader(folder_of(self.root, progress.step)).progress == progress
        except (OSError, ValueError):
            return False

    def _would_fit(self, share: RankShare) -> bool:
        """Return whether every host has the memory for a copy of its ranks' shares. Collective."""
        node = platform.node()
        needed = sum(size for other, size in self.collectives.gather((node, share.bytes)) if other == node)
        left = memory.free_bytes() - needed
        return not self.collectives.any(left < self.keep_free * memory.total_bytes())

    def written(self) -> bool:
        """Return whether this rank's file is written, or has failed: the next `finish` does not wait for this rank."""
        return self._pending is not None and self._pending.ended()

    def finish(self) -> Path | None:
        """Complete the last save, waiting for it where necessary. Return its folder, or None without one.

        Old checkpoints are deleted in the background: by then the other ranks are in the next update, where they would
        wait for slow storage, and might take it for a hang."""
        self.settle()
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        files = self.collectives.gather(pending.wait())
        self._refuse(pending, [entry.get("error") for entry in files])
        self._agree(pending, pending.commit(files) if self.process.is_main else None)
        if self.process.is_main:
            self._dropping = threading.Thread(target=self._drop, daemon=True)
            self._dropping.start()
        return pending.final

    def settle(self) -> None:
        """Wait until old checkpoints are deleted."""
        if self._dropping is not None:
            self._dropping.join()
            self._dropping = None

    def _drop(self) -> None:
        """Delete old checkpoints. One that cannot be deleted causes one warning: it costs space, not the run.

        Each is renamed first, so that a process killed meanwhile leaves no half checkpoint under its name; the next
        save deletes the rest."""
        old: list[Path] = []
        with suppress(OSError):  # a folder that cannot be listed for now: the next save deletes them
            old = [*self.root.glob(f"{_DROPPED}*")]  # first: a step that was written again takes the name of its rest
            old += [folder_of(self.root, step) for step in self.retention.dropped(steps_in(self.root))]
        for folder in old:
            gone = folder.with_name(_DROPPED + folder.name.removeprefix(_DROPPED))
            try:
                if folder.is_symlink():
                    raise OSError("a link, which is not followed")
                shutil.rmtree(folder.rename(gone))
            except OSError as error:
                if gone not in self._undropped:
                    print(
                        f"warning: {folder}: cannot be dropped ({error}); the run continues",
                        file=sys.stderr,
                        flush=True,
                    )
                self._undropped.add(gone)

    def _agree(self, pending: Pending, error: str | None) -> None:
        self._refuse(pending, self.collectives.gather(error))

    def _refuse(self, pending: Pending, errors: list[str | None]) -> None:
        failed = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error]
        if not failed:
            return
        if self.process.is_main:
            shutil.rmtree(pending.work, ignore_errors=True)
        step = pending.progress.step
        raise OSError(f"checkpoint of step {step} in {self.root} not written ({'; '.join(failed)})")


def finish_renaming(root: Path) -> None:
    """Rename a save that was killed between the two renames of `Pending.commit`. It is whole, since its manifest is
    written last. Else that step, and with `checkpoint.keep=1` the run, would have no checkpoint. Raises OSError."""
    for aside in root.glob(f"{_TEMPORARY}step-*"):
        final = root / aside.name.removeprefix(_TEMPORARY)
        step = step_of(final)
        if step is not None and not os.path.lexists(final):
            work = root / f"{_TEMPORARY}{step:08d}"
            (work if (work / manifest.NAME).is_file() else aside).rename(final)


class Pending:
    """Checkpoint in writing, with one file for each of the first `files` ranks (default: all)."""

    def __init__(self, root: Path, progress: Progress, facts: dict, process: ProcessInfo, files: int | None = None):
        self.root, self.facts, self.process = root, facts, process
        self.files = process.world_size if files is None else files
        self.progress = replace(progress, skipped=dict(progress.skipped))  # the run changes its own meanwhile
        self.final = folder_of(root, progress.step)
        self.work = root / f"{_TEMPORARY}{progress.step:08d}"
        self._entry: dict[str, Any] = {}
        self._thread: threading.Thread | None = None

    def make_folder(self) -> str | None:
        try:
            for left_over in self.root.glob(f"{_TEMPORARY}*"):
                _remove(left_over)
            self.work.mkdir(parents=True)
        except OSError as error:
            return describe_os_error(error, self.root)
        return None

    @property
    def _file(self) -> Path:
        return self.work / f"state-{self.process.rank:05d}-of-{self.files:05d}.safetensors"

    def start(self, copy: dict[str, Tensor]) -> None:
        """Write a copy of this rank's share in the background."""
        if self._has_none():
            return
        # a daemon: a run that fails must not wait for a disk
        self._thread = threading.Thread(target=self._write, args=(copy,), daemon=True)
        self._thread.start()

    def write_now(self, share: RankShare) -> None:
        """Write this rank's share as it is gathered. Collective: all ranks continue to the end, even one that cannot
        write."""
        gathered = iter(share)
        if self._has_none():
            for _ in gathered:
                pass
            return
        try:
            with TensorFile(self._file, share.shapes) as file:
                for name, tensor in gathered:
                    file.append(name, tensor)
            self._written(list(share.shapes))
        except OSError as error:
            self._entry = {"error": describe_os_error(error, self.root, share.bytes)}
            for _ in gathered:
                pass

    def _has_none(self) -> bool:
        """Return whether this rank has nothing to write, as most where there are more ranks than parameters."""
        if self.process.rank >= self.files:
            self._entry = {"tensors": []}
        return bool(self._entry)

    def ended(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> dict[str, Any]:
        """Return this rank's entry in the manifest, without a name if it has no file; or the error that kept its file
        from being written."""
        if self._thread is not None:
            self._thread.join()
        assert self._entry, "a thread that ends leaves an entry"
        return self._entry

    def _write(self, copy: dict[str, Tensor]) -> None:
        try:
            save_tensors(copy, self._file)
            self._written(list(copy))
        except OSError as error:
            wanted = sum(tensor.nbytes for tensor in copy.values())
            self._entry = {"error": describe_os_error(error, self.root, wanted)}
        except Exception as error:  # whatever it is, all ranks learn of it, and none waits for this one
            self._entry = {"error": f"the thread that writes it failed ({type(error).__name__}: {error})"}

    def _written(self, tensors: list[str]) -> None:
        file = self._file
        sync(file)
        entry = {"name": file.name, "bytes": file.stat().st_size, "blake2b": digest(file), "sums": sums(file)}
        self._entry = {**entry, "tensors": sorted(tensors)}

    def commit(self, files: list[dict[str, Any]]) -> str | None:
        """Write the manifest and rename the folder. Return the error where that failed."""
        progress = asdict(self.progress)
        if not progress["refused"]:  # in most runs: earlier versions do not know this field
            del progress["refused"]
        text = manifest.to_json({"progress": progress, "files": [one for one in files if "name" in one], **self.facts})
        try:
            (self.work / manifest.NAME).write_text(text, encoding="utf-8")
            sync(self.work / manifest.NAME)
            sync(self.work)
            if os.path.lexists(self.final):  # damaged, or of other samples: moved away at once, not by file
                self.final.rename(self.root / f"{_TEMPORARY}{self.final.name}")
            self.work.rename(self.final)
            sync(self.root)
            if os.path.lexists(aside := self.root / f"{_TEMPORARY}{self.final.name}"):
                _remove(aside)
        except OSError as error:
            return describe_os_error(error, self.root, len(text))
        return None


def _remove(path: Path) -> None:
    """Delete a folder, or a file or link in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
