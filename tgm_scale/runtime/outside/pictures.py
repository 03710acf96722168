"""Pictures from outside: of the formats that are asked for and no others (Pillow starts Ghostscript for an EPS, by
whatever name), and of no more pixels than are wanted."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture_of(source: Path | bytes, formats: tuple[str, ...], size: tuple[int, int] | None = None) -> np.ndarray:
    """The picture of a file or of bytes, uint8 (or as its mode is) [H, W] or [H, W, channels], transparency left out.

    size: height and width that it must have, which is asked before anything is unpacked. Raises ValueError, which
    names a file; OSError where the storage does not answer."""
    where = f"{source}: " if isinstance(source, Path) else ""
    data = source.read_bytes() if isinstance(source, Path) else source
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if size is not None and (image.height, image.width) != size:
                raise ValueError(f"a picture of {image.height} x {image.width} pixels, wanted {size[0]} x {size[1]}")
            pixels = np.asarray(image)
            return pixels[..., :-1] if image.mode in ("LA", "RGBA") else pixels
    except Exception as error:  # Pillow's readers raise what they come upon: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{where}not a whole picture ({', '.join(formats)}) of this size: {error}") from None
