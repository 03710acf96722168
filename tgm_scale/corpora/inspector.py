"""Inspection of one sample of a corpus: its members against their sums, its captions, its decoded video."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field

import numpy as np

from tgm_scale.contracts import Problem
from tgm_scale.data.building.annotations import captions_of, json_fault, unfit_captions
from tgm_scale.data.shards.index import Corpus, DamagedMember
from tgm_scale.data.video.decode import DecodeError, Video

THUMBNAIL = 112  # pixels, the longer side


@dataclass
class SampleStats:
    """Facts on a sample. Without a problem: length, size, and, if requested, a thumbnail of its middle frame."""

    name: str
    digest: str = ""  # of the video's bytes; "" where they differ from the indexed ones
    captions: list[str] = field(default_factory=list)
    json_broken: bool = False
    unfit_captions: list[str] = field(default_factory=list)  # the fault of each, as text
    sums: dict[str, int] = field(default_factory=dict)  # zlib.crc32 of each member, where the index has none
    seconds: float = 0.0
    frames: int = 0
    width: int = 0
    height: int = 0
    interlaced: bool = False
    problem: Problem | None = None
    thumbnail: np.ndarray | None = None  # uint8 [h, w, 3]


class SampleInspector:
    """Inspector of samples, for worker processes. decode: number of frames per sample, evenly spaced."""

    def __init__(self, corpus: Corpus, decode: int):
        self.corpus, self.decode = corpus, decode

    def __call__(self, shard: int, row: int, thumbnail: bool) -> SampleStats:
        """Inspect a sample; all members are read and compared with their sums. Raises OSError where the shard is
        unreadable."""
        ref = self.corpus.sample(shard, row)
        try:
            members = self.corpus.read(ref, list(ref.members))
        except DamagedMember as error:
            return SampleStats(ref.name, problem=error.problem)
        video = members[ref.video]
        digest = hashlib.blake2b(video, digest_size=16).hexdigest()
        stats = SampleStats(
            ref.name, digest, captions_of(members), json_fault(members) is not None, unfit_captions(members)
        )
        if not ref.sums:
            stats.sums = {extension: zlib.crc32(data) for extension, data in members.items()}
        try:
            self._decode(video, stats, thumbnail)
        except DecodeError as error:
            stats.problem = Problem(ref.name, error.reason, error.detail)
        return stats

    def _decode(self, data: bytes, stats: SampleStats, thumbnail: bool) -> None:
        with Video(data) as video:
            stats.frames, stats.seconds = video.count, video.time(video.count)
            wanted = np.unique(np.linspace(0, video.count - 1, self.decode).round().astype(int))
            middle = wanted[len(wanted) // 2]
            for index, image in video.frames(wanted):
                stats.height, stats.width, _ = image.shape
                if thumbnail and index == middle:
                    stats.thumbnail = _small(image)
            stats.interlaced = video.interlaced


def _small(image_HW3: np.ndarray) -> np.ndarray:
    import torch.nn.functional as F  # here: a check without pictures does not need torch
    from torch import from_numpy

    height, width, _ = image_HW3.shape
    scale = THUMBNAIL / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels_13HW = from_numpy(np.ascontiguousarray(image_HW3)).permute(2, 0, 1)[None]
    return F.interpolate(pixels_13HW, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
