"""Iteration over the samples of a corpus."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

from torch import Tensor

from tgm_scale.contracts import Problem
from tgm_scale.data.building.annotations import CAPTION_EXTENSIONS, captions_of
from tgm_scale.data.lists.selection import Role, Selection
from tgm_scale.data.shards import opening
from tgm_scale.data.shards.index import Corpus, DamagedMember
from tgm_scale.python.arguments import existing, path_of, told
from tgm_scale.python.video import read_video

_PATTERN = set("*?[{")


@dataclass(frozen=True)
class Sample:
    """A sample. name: as in logs. captions: those that a run would use, if any. video: the bytes of its file."""

    name: str
    captions: list[str]
    video: bytes = field(repr=False)

    def read(self, frames: int = 16, size: int = 224, stride: int = 4, windows: int = 1, squares: int = 1) -> Tensor:
        """Return its clips, uint8 [windows * squares, 3, frames, size, size], as `read_video`.

        Raises ValueError that names the sample if it cannot be decoded."""
        try:
            return read_video(self.video, frames, size, stride, windows, squares)
        except ValueError as error:
            raise ValueError(str(error).replace("the video", self.name, 1)) from None


class Samples:
    """Iterable of the samples, shard by shard, in stored order; it can be iterated repeatedly.

    left_out: number of samples without a usable video, by reason. problems: one for each known sample left out.
    Samples with damaged bytes are found during iteration: from then on they are in both, and not in the length. Raises
    OSError if the storage does not respond."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._damaged: dict[str, Problem] = {}

    def __len__(self) -> int:
        return len(self._corpus) - len(self._damaged)

    def __iter__(self) -> Iterator[Sample]:
        for ref in self._corpus.refs:
            try:
                members = self._corpus.read(ref, [ref.video, *CAPTION_EXTENSIONS])
            except DamagedMember as error:
                self._damaged[ref.name] = error.problem
                continue
            self._damaged.pop(ref.name, None)  # earlier damage
            yield Sample(ref.name, captions_of(members), members[ref.video])

    @property
    def left_out(self) -> dict[str, int]:
        return dict(Counter(self._corpus.left_out) + Counter(problem.reason for problem in self._damaged.values()))

    @property
    def problems(self) -> list[Problem]:
        return [*self._corpus.all_problems(), *self._damaged.values()]

    def __repr__(self) -> str:
        return f"Samples({self._corpus.name!r}, {len(self)} samples)"


def open_corpus(
    spec: str | os.PathLike[str] | list[str], root: str | os.PathLike[str] | None = None, part: Role = "all"
) -> Samples:
    """Open the samples of anything that `data.shards` of a run accepts.

    That is a folder of shards or of videos, a glob or brace pattern, URLs, or a list of videos (CSV, JSON lines, ...),
    whose paths are relative to `root` (default: its folder). part: in a list with a column `split`, the rows of train
    (what a run reads), of test, or all.
    Raises ValueError if there is no usable sample, and FileNotFoundError if the path does not exist."""
    if part not in get_args(Role):
        raise ValueError(f"part={part!r}: wanted one of {', '.join(get_args(Role))}")
    given = [path_of("spec", one) for one in spec] if isinstance(spec, list) else path_of("spec", spec)
    folder = None if root is None else path_of("root", root)
    if isinstance(given, str) and "://" not in given and not _PATTERN.intersection(given):
        existing("spec", given)
    with told():
        return Samples(opening.open_corpus(given, root=folder, selection=Selection(part, "caption")))
