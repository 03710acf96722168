"""NumPy files and pictures from outside. Arrays: plain numbers, of the size that they claim and the reader allows; no
objects. Pictures: only of the requested formats (Pillow starts Ghostscript for an EPS, whatever its name), and of no
more pixels than wanted."""

from __future__ import annotations

import errno
import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from PIL import Image

_HEADER = 1 << 16  # bytes at most, before an array's numbers


def array_of(data: bytes) -> np.ndarray:
    """Return the array of a .npy file's bytes, without a copy. Raises ValueError where they are not one."""
    stream = io.BytesIO(data)
    try:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        shape, by_columns, dtype = read_header(stream)
    except Exception as error:  # the header is Python source, for whose faults numpy's reader raises many kinds
        raise ValueError(f"no .npy file ({type(error).__name__}: {str(error)[:200]})") from None
    count, size = math.prod(shape), len(data) - stream.tell()
    if not dtype.itemsize or any(isinstance(side, bool) for side in shape):
        raise ValueError(f"shape {shape} of {dtype.itemsize} bytes each")
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("holds objects, which are never unpickled" if dtype.hasobject else f"shape {shape}")
    if count * dtype.itemsize != size:
        raise ValueError(f"claims {shape} of {dtype.itemsize} bytes each, has {size} bytes")
    flat = np.frombuffer(data, dtype, count, stream.tell()) if size else np.empty(count, dtype)
    return flat.reshape(shape, order="F" if by_columns else "C")


def fields_of(file: Path, wanted: Sequence[str], largest: int) -> list[np.ndarray]:
    """Return these fields of a .npz file, each of at most `largest` bytes; no more is unpacked, whatever the file
    claims.

    Raises ValueError that names the file and the field, OSError where the storage does not answer."""
    found = []
    try:
        with zipfile.ZipFile(file) as archive:
            for name in wanted:
                found.append(_field(archive, name, largest))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{file}: no whole .npz file ({error})") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{file}: no whole .npz file (it points before its beginning)") from None
    return found


def _field(archive: zipfile.ZipFile, name: str, largest: int) -> np.ndarray:
    if f"{name}.npy" not in archive.namelist():
        there = ", ".join(member.removesuffix(".npy") for member in archive.namelist()[:8])
        raise ValueError(f"has no field {name} (found: {there or 'none'})")
    with archive.open(f"{name}.npy") as stream:
        data = stream.read(largest + _HEADER + 1)
    if len(data) > largest + _HEADER:
        raise ValueError(f"field {name}: more than {largest:,} bytes")
    try:
        return array_of(data)
    except ValueError as error:
        raise ValueError(f"field {name}: {error}") from None


def picture_of(source: Path | bytes, formats: tuple[str, ...], size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a picture from a file or bytes, uint8 (or as its mode is) [H, W] or [H, W, channels], without
    transparency.

    size: required height and width, checked before anything is unpacked. Raises ValueError, which names a file;
    OSError where the storage does not answer."""
    where = f"{source}: " if isinstance(source, Path) else ""
    data = source.read_bytes() if isinstance(source, Path) else source
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if size is not None and (image.height, image.width) != size:
                raise ValueError(f"a picture of {image.height} x {image.width} pixels, wanted {size[0]} x {size[1]}")
            pixels = np.asarray(image)
            return pixels[..., :-1] if image.mode in ("LA", "RGBA") else pixels
    except Exception as error:  # Pillow's readers raise many kinds: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{where}not a whole picture ({', '.join(formats)}) of this size: {error}") from None
