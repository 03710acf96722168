"""Where the rows of metrics.jsonl are shown once more while a run is under way: TensorBoard, Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

PICTURE = "reconstructions"  # the name of the pictures there


class Board(Protocol):
    def row(self, step: int, figures: dict[str, float]) -> None: ...

    def picture(self, step: int, picture: Image.Image) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """RUN/tensorboard. A restart hides what came after the checkpoint."""

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
    """The numbers of a row, without its step."""
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
