"""Relevance maps stored in a shard with their clip, as the member `tgm.npy`.

A member holds the maps of a sample's captions, on the tower's grid over whole frames, with the times of the frames and
a fingerprint of the towers and settings that produced them. It is one .npy record of plain numbers: nothing is
unpickled.

Shapes: K captions, F scored frames, T requested frames, h x w patches.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tgm_scale.guidance.towers import model_files
from tgm_scale.runtime.outside.arrays import array_of

EXTENSION = "tgm.npy"


def fingerprint(folder: str | Path, scorer: str, resolution: int | None) -> str:
    """Return a digest of the model's files and of the guidance settings that affect a map: 32 hexadecimal digits."""
    digest = hashlib.blake2b(f"{scorer} {resolution}".encode(), digest_size=16)
    for file in model_files(folder):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


class UnreadableMaps(Exception):
    """Member that is not a record of maps: bad data of one sample."""


def pack(maps_KFhw: NDArray[np.floating], seconds_F: NDArray[np.floating], made_by: str) -> bytes:
    """Return the member's bytes: float16 maps, the frames' times in the clip, ascending, and the fingerprint."""
    fields = np.dtype([("fingerprint", "S32"), ("seconds", "<f4", seconds_F.shape), ("maps", "<f2", maps_KFhw.shape)])
    record = np.array((made_by.encode(), seconds_F, maps_KFhw), dtype=fields)
    stream = io.BytesIO()
    np.save(stream, record, allow_pickle=False)
    return stream.getvalue()


@dataclass(frozen=True)
class RelevanceCache:
    """Reader of members that were made with the towers and settings of this run."""

    wanted: str  # fingerprint
    one_of: int = 1  # the middle one of this many consecutive frames stands for them; 1: each for itself

    def read(self, member: bytes, caption: int, seconds_T: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the maps of one caption at the scored frames nearest the given times: float32 [T, h, w].

        T is a multiple of `one_of`. Raises UnreadableMaps for a broken member, and ValueError where other towers or
        settings made it."""
        middle_T = np.arange(len(seconds_T)) // self.one_of * self.one_of + self.one_of // 2
        seconds_T = np.asarray(seconds_T)[middle_T]
        try:
            made_by, scored_F, maps_KFhw = _record(member)
            maps_Fhw = maps_KFhw[caption].astype(np.float32)
            nearest_T = np.abs(scored_F - seconds_T[:, None]).argmin(axis=1)
            finite = bool(np.isfinite(maps_Fhw).all())
        except (ValueError, IndexError) as error:
            raise UnreadableMaps(f"{EXTENSION}: {error}") from error
        if made_by != self.wanted:
            raise ValueError(
                f"data.shards: the relevance maps in {EXTENSION} were made with other towers or settings (fingerprint "
                f"{made_by}, this run's is {self.wanted}): make them again, set guidance.towers, "
                "guidance.scorer and guidance.resolution to those they were made with, or leave the maps out"
            )
        if not finite:
            raise UnreadableMaps(f"{EXTENSION}: a relevance is not a finite number")
        return maps_Fhw[nearest_T]


def _record(member: bytes) -> tuple[str, NDArray[np.floating], NDArray[np.floating]]:
    """Return fingerprint, times [F] and maps [K, F, h, w]. Raises ValueError for anything but such a record."""
    record = array_of(member)
    if record.shape or set(record.dtype.names or ()) != {"fingerprint", "seconds", "maps"}:
        raise ValueError(f"wanted one record of fingerprint, seconds and maps, found {str(record.dtype)[:200]}")
    seconds_F, maps_KFhw = record["seconds"], record["maps"]
    if seconds_F.dtype.kind != "f" or maps_KFhw.dtype.kind != "f" or record["fingerprint"].dtype.kind != "S":
        raise ValueError(f"other kinds of values than numbers: {str(record.dtype)[:200]}")
    if maps_KFhw.ndim != 4 or 0 in maps_KFhw.shape or seconds_F.shape != maps_KFhw.shape[1:2]:
        raise ValueError(
            f"maps of {maps_KFhw.shape} at {seconds_F.shape} times: wanted [captions, times, rows, columns]"
        )
    if not np.isfinite(seconds_F).all():
        raise ValueError("a time is not a finite number")
    return bytes(record["fingerprint"][()]).decode(), seconds_F, maps_KFhw
