"""Choice of the checkpoint that a run resumes from: the newest whole one. Damaged ones are renamed, with a warning."""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tgm_scale.checkpoints import checkpoint, folders
from tgm_scale.checkpoints.checkpoint import Progress
from tgm_scale.checkpoints.saver import finish_renaming
from tgm_scale.runs import events
from tgm_scale.runtime.distributed import HostCollectives


class Resume:
    """Newest whole checkpoint of a run folder, `newest`, or None in a new run. Construction and `restore` are
    collective.

    While the engine is built, its files are compared with their hashes in the background, a share of them by each
    rank: a rank maps the rest and reads the parts it needs. Damaged checkpoints are renamed to `damaged-step-...` once
    a whole one is known. Where all are damaged, raises ValueError on every rank and renames none: else the next start
    would begin anew. A checkpoint that cannot be read for now is not damaged: OSError on every rank."""

    def __init__(self, folder: Path, collectives: HostCollectives):
        self._folder, self._root, self._collectives = folder, folder / "checkpoints", collectives
        self._damaged: dict[Path, str] = {}
        self.newest = self._find_newest()

    def restore(self, engine: Any) -> Progress:
        """Load the newest whole checkpoint into the engine. Raises OSError where a damaged one cannot be renamed."""
        if self.newest is None:
            return Progress()
        while found := next(filter(None, self._collectives.gather(self._hashing.result())), None):
            if not isinstance(found, ValueError):  # unknown whether it is damaged
                raise found
            self._damaged[self.newest] = str(found)
            self.newest = self._find_newest()
            assert self.newest is not None
        if error := self._collectives.broadcast(
            self._set_aside(self.newest) if self._collectives.process.is_main else None
        ):
            raise OSError(error)
        return checkpoint.restore(engine, self.newest)

    def _find_newest(self) -> Path | None:
        """Return the newest checkpoint that looks whole to rank 0: on a network file system other ranks may see an
        older listing. Starts the comparison of its files with their hashes."""
        found: tuple[Path | None, Exception | None] = None, None
        if self._collectives.process.is_main:
            try:
                finish_renaming(self._root)
                reader = checkpoint.newest_whole(self._root, self._damaged)
                found = None if reader is None else reader.folder, None
            except (OSError, ValueError) as error:
                found = None, error
        newest, refusal = self._collectives.broadcast(found)
        if refusal is not None:
            raise refusal
        if newest is not None:
            pool = ThreadPoolExecutor(1)
            self._hashing: Future[Exception | None] = pool.submit(self._compared, newest)
            pool.shutdown(wait=False)
        return newest

    def _compared(self, folder: Path) -> Exception | None:
        process = self._collectives.process
        try:
            checkpoint.Reader(folder, checked=False).verify(process.rank, process.world_size, quick=True)
        except Exception as error:  # raised in this rank's thread: all ranks learn of it
            return error
        return None

    def _set_aside(self, used: Path) -> str | None:
        for folder, why in self._damaged.items():
            try:
                aside = folder.rename(_free_name(folder.with_name(f"damaged-{folder.name}")))
                step = folders.step_of(used)
                events.append(self._folder, "checkpoint_damaged", step=step, checkpoint=aside.name, why=why)
            except OSError as error:
                return f"{folder}: damaged ({why}), and cannot be renamed: {error}"
            print(f"warning: {why}\n{folder.name} is now {aside}; resuming from {used.name}", file=sys.stderr)
        sys.stderr.flush()
        return None


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{number}") for number in range(2, 10_000))
    return path if not path.exists() else next(name for name in names if not name.exists())
