"""Boards that show the rows of metrics.jsonl during a run: TensorBoard, Weights & Biases.

The latter cannot hold up or stop training: data to send wait in the queue of a separate thread, and failures are
warnings. Only rows, pictures and the configuration (its addresses without secrets) are sent: no code, command line or
machine details.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tgm_scale.config.sections import RunSettings, WandbConfig
from tgm_scale.runtime.terminal import message, tree_without_secrets

PICTURE = "reconstructions"  # the name of the pictures on the boards
_WAITING = 10_000  # rows that wait to be sent, some 10 MB; further ones are dropped
_FINISH_SECONDS = 15.0  # to send the rest at the end, which also lies in RUN/wandb
_JOIN_SECONDS = 20.0


class TensorBoard:
    """Board in RUN/tensorboard. A restart hides everything after its checkpoint."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def row(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, picture: Image.Image) -> None:
        self._writer.add_image(PICTURE, np.asarray(picture), step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()  # else a kill would lose the last two minutes

    def close(self) -> None:
        self._writer.close()


def figures_of(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a row, without its step."""
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}


def run_id(folder: Path) -> str:
    """Return an id that is the same at every start of a run, wherever its folder lies: a hash of the first start's
    record, which has its time, its host, and digests of the configuration."""
    with (folder / "environment.jsonl").open("rb") as stream:
        return hashlib.blake2b(stream.readline(), digest_size=8).hexdigest()


class WandbBoard:
    """Weights & Biases run of one start."""

    def __init__(self, folder: Path, settings: WandbConfig, tree: dict[str, Any]):
        """Start the thread that sends. tree: the configuration to show there."""
        self._folder, self._settings, self._tree = folder, settings, tree
        self._waiting: queue.Queue[tuple[int, dict[str, Any]] | int] = queue.Queue(_WAITING)
        self._dropped = 0
        self._failed = False
        self._thread = threading.Thread(target=self._send, name="wandb", daemon=True)
        self._thread.start()

    def row(self, step: int, figures: dict[str, float]) -> None:
        self._put(step, dict(figures))

    def picture(self, step: int, picture: Image.Image) -> None:
        self._put(step, {PICTURE: picture})

    def flush(self) -> None:
        """Do nothing: training does not wait for a network."""

    def close(self, code: int = 0) -> None:
        """Send the queue's rest within some seconds. code: 0 where the run ended as it should."""
        try:
            self._waiting.put_nowait(code)
        except queue.Full:
            self._dropped += 1
        self._thread.join(_JOIN_SECONDS)
        if self._dropped or self._thread.is_alive():
            left = f"{self._dropped} rows were dropped" if self._dropped else "not all was sent in time"
            self._warn(f"{left}; metrics.jsonl has all rows, and `wandb sync` sends what lies in {self._folder}/wandb")

    def _put(self, step: int, figures: dict[str, Any]) -> None:
        if self._failed:
            return
        try:
            self._waiting.put_nowait((step, figures))
        except queue.Full:
            self._dropped += 1

    def _send(self) -> None:
        try:
            run = self._begin()
            while not isinstance(item := self._waiting.get(), int):
                step, figures = item
                run.log({name: self._shown(value) for name, value in figures.items()}, step=step)
            run.finish(exit_code=item)
        except Exception as error:  # whatever it is, training goes on
            self._failed = True
            self._warn(f"{type(error).__name__}: {error}; the run goes on without")

    def _begin(self) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else failures are reported to its makers
        import wandb

        mode: Any = self._settings.mode or os.environ.get("WANDB_MODE") or "online"  # wandb checks the latter
        if mode == "online" and not wandb.login(prompt=False):
            raise ValueError("no login: run `wandb login`, or set log.wandb.mode=offline")
        run = wandb.init(
            project=self._settings.project,
            id=run_id(self._folder),
            name=self._folder.resolve().name,
            dir=str(self._folder),
            mode=mode,
            resume="allow" if mode == "online" else None,  # offline the id alone identifies the run
            reinit="create_new",
            config=self._tree,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                finish_timeout=_FINISH_SECONDS,
                stop_fn=lambda: self._warn("a stop that was asked for there is left: end the job"),
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        where = run.url or f"offline: `wandb sync {run.settings.sync_dir}` sends it"
        print(message(f"log.wandb: run {run.id}, {where}"), flush=True)
        return run

    def _shown(self, value: Any) -> Any:
        import wandb

        return wandb.Image(value) if isinstance(value, Image.Image) else value

    def _warn(self, text: str) -> None:
        print(message(f"warning: log.wandb: {text}"), file=sys.stderr, flush=True)


Board = TensorBoard | WandbBoard


@contextmanager
def others(folder: Path, config: RunSettings, settings: WandbConfig | None) -> Iterator[list[Board]]:
    """Yield the boards other than TensorBoard while steps are made."""
    if settings is None:
        yield []
        return
    board = WandbBoard(folder, settings, tree_without_secrets(config.model_dump(mode="json")))
    code = 1
    try:
        yield [board]
        code = 0
    finally:
        board.close(code)
