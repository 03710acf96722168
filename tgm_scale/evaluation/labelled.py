"""A corpus with a label for each sample: shards whose json holds it, or a list of video files."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tgm_scale.contracts import Problem
from tgm_scale.data.annotations import CAPTION_EXTENSIONS, captions_of
from tgm_scale.data.index import VIDEO_EXTENSIONS, Corpus, SampleRef
from tgm_scale.data.listed import ListedCorpus
from tgm_scale.evaluation.lists import Entry, Folder, is_list, read_list

SYNTHETIC_MOTION = "truth.objects.0.motion"
_STATS_AT_A_TIME = 16  # a network file system answers one in a millisecond


@dataclass(frozen=True)
class Labelled:
    """A corpus, the label of each sample by its name, and what has none or is not there."""

    corpus: Corpus
    labels: dict[str, str]
    problems: list[Problem]

    @cached_property
    def refs(self) -> list[SampleRef]:
        """The labelled samples in the order of their names."""
        counts = self.corpus.counts.tolist()
        every = (self.corpus.sample(shard, row) for shard, count in enumerate(counts) for row in range(count))
        return sorted((ref for ref in every if ref.name in self.labels), key=lambda ref: ref.name)


def open_labelled(
    spec: str | list[str], label: str = "label", *, role: str = "train", root: str | None = None, split: int = 1
) -> Labelled:
    """What `spec` names: shards (anything that `Corpus.open` takes), or a list (see lists.py) of videos below `root`.

    label: where a sample's json has its label, such as `label` or `truth.objects.0.motion`; for EPIC-Kitchens' lists
    verb, noun or action. role, split: the part of HMDB51's lists. Raises ValueError where nothing is labelled."""
    if is_list(spec):
        assert isinstance(spec, str)
        return _open_list(spec, read_list(spec, role, label, split), root)
    corpus = Corpus.open(spec)
    labels, problems = read_labels(corpus, label)
    return Labelled(corpus, labels, problems)


def _open_list(spec: str, entries: list[Entry], root: str | None) -> Labelled:
    folder = Folder(root if root is not None else Path(spec).parent, VIDEO_EXTENSIONS)
    with ThreadPoolExecutor(_STATS_AT_A_TIME) as pool:
        found = list(pool.map(folder.find, [entry.path for entry in entries]))
    files = {entry.path: str(file) for entry, file in zip(entries, found) if file is not None}
    if not files:
        raise ValueError(
            f"{spec}: none of its {len(entries)} videos (the first: {entries[0].path}) lies below {folder.root}: set "
            "data.root to the folder of the videos"
        )
    problems = [
        Problem(entry.path, "no_file", f"not below {folder.root}")
        for entry, file in zip(entries, found)
        if file is None
    ]
    return Labelled(ListedCorpus.of_files(Path(spec).stem, list(files.items())), dict(entries), problems)


def label_at(path: str) -> Callable[[dict], str]:
    """Reads a label from a sample's json by a dotted path, such as `label` or `truth.objects.0.motion`."""

    def read_label(fields: Any) -> str:
        for part in path.split("."):
            fields = fields[int(part)] if isinstance(fields, list) else fields[part]
        if isinstance(fields, (dict, list)):
            raise KeyError(f"{path} is no single value")
        return str(fields)

    return read_label


def read_labels(corpus: Corpus, path: str) -> tuple[dict[str, str], list[Problem]]:
    """The label of each sample by its name, and the samples that have none. Raises ValueError where none has one."""
    label_of = label_at(path)
    return _read_each(
        corpus,
        ["json"],
        lambda members: label_of(json.loads(members["json"])),
        "no_label",
        f"no sample's json has a value at {path!r}",
        f"name the label's place, such as data.label=label or data.label={SYNTHETIC_MOTION}",
    )


def read_captions(corpus: Corpus) -> tuple[dict[str, str], list[Problem]]:
    """The first caption of each sample by its name, and those that have none. Raises ValueError where none has."""
    return _read_each(
        corpus,
        list(CAPTION_EXTENSIONS),
        lambda members: captions_of(members)[0],
        "no_caption",
        "no sample has a caption",
        "retrieval needs shards with captions (json or txt)",
    )


def _read_each(
    corpus: Corpus,
    extensions: list[str],
    value_of: Callable[[dict[str, bytes]], str],
    reason: str,
    none: str,
    hint: str,
) -> tuple[dict[str, str], list[Problem]]:
    values: dict[str, str] = {}
    problems: list[Problem] = []
    for shard, count in enumerate(corpus.counts.tolist()):
        for row in range(count):
            ref = corpus.sample(shard, row)
            try:
                values[ref.name] = value_of(corpus.read(ref, extensions))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                problems.append(Problem(ref.name, reason, f"{type(error).__name__}: {error}"))
    if not values:
        raise ValueError(f"corpus {corpus.name!r}: {none} ({problems[0].key}: {problems[0].detail}); {hint}")
    return values, problems
