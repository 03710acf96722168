"""RUN/pictures/step-NNNNNNNN.png: pictures that `log.pictures_every` draws during a run."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from tgm_scale.data.access.storage import write_atomically
from tgm_scale.runtime.files import describe_os_error
from tgm_scale.runtime.outside.arrays import picture_of

FOLDER = "pictures"
_NAME = re.compile(r"step-(\d{8,})\.png")


def keep(folder: Path, step: int, picture: Image.Image) -> None:
    """Write the picture of a step. Raises OSError that names the file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    file = folder / FOLDER / f"step-{step:08d}.png"
    try:
        write_atomically(file, stream.getvalue(), durable=False)
    except OSError as error:
        raise OSError(f"{file}: {describe_os_error(error, folder, len(stream.getvalue()))}") from error


def kept(folder: Path) -> dict[int, Path]:
    """Return the pictures of a run by step, oldest first."""
    place = folder / FOLDER
    found = {int(name[1]): file for file in place.glob("step-*.png") if (name := _NAME.fullmatch(file.name))}
    return dict(sorted(found.items()))


def newest(folder: Path) -> tuple[int, bytes] | None:
    """Return the newest picture with its step; None without one. Raises ValueError for a file that is no picture."""
    if not (found := kept(folder)):
        return None
    step, file = max(found.items())
    data = file.read_bytes()
    try:
        picture_of(data, ("PNG",))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return step, data


def cut_after(folder: Path, step: int) -> None:
    """Delete the pictures of steps that are made again."""
    for at, file in kept(folder).items():
        if at > step:
            file.unlink(missing_ok=True)
