"""A corpus with a label for each sample: shards whose json holds the label, or a list of video files."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tgm_scale.contracts import NOTICES, Problem
from tgm_scale.data.access.addresses import resolved
from tgm_scale.data.building.annotations import CAPTION_EXTENSIONS, captions_of, json_fault
from tgm_scale.data.lists.reading import LABELS, Selection, is_list, read_list
from tgm_scale.data.lists.text import cleaned, shown
from tgm_scale.data.shards.index import Corpus, SampleRef
from tgm_scale.data.shards.inventory import NAMED, Inventory
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.read_ahead import read_ahead
from tgm_scale.data.shards.video_list import VideoListCorpus
from tgm_scale.evaluation.classes import alike_note, missing_note, single_class_note
from tgm_scale.runtime import seeding
from tgm_scale.runtime.outside.json_text import json_of

SYNTHETIC_MOTION = "truth.objects.0.motion"

_END = 2**16  # bytes


@dataclass(frozen=True)
class LabelledCorpus:
    """A corpus with the label of each sample by its name, and the samples that are unlabelled or missing.

    undrawn: number of labelled samples that `share_of` did not draw; nothing is wrong with them."""

    corpus: Corpus
    labels: dict[str, str]
    problems: list[Problem]
    undrawn: int = 0

    @cached_property
    def refs(self) -> list[SampleRef]:
        """Labelled samples in the order of their names."""
        return sorted((ref for ref in self.corpus.refs if ref.name in self.labels), key=lambda ref: ref.name)

    @property
    def groups(self) -> dict[str, str]:
        """Group of each sample by its name, for a list that has groups."""
        return self.corpus.groups if isinstance(self.corpus, VideoListCorpus) else {}

    @property
    def content(self) -> str:
        """Digest of names, labels and groups, independent of their order."""
        rows = sorted((name, label, self.groups.get(name)) for name, label in self.labels.items())
        return hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()

    @property
    def sample_labels(self) -> list[str]:
        """Label of each of `refs`, in their order."""
        return [self.labels[ref.name] for ref in self.refs]


def open_labelled(
    spec: str | list[str], selection: Selection | None = None, *, root: str | None = None
) -> LabelledCorpus:
    """Open shards (anything that `open_corpus` takes) or a list (data/lists) of videos below `root`.

    selection: which part of a list. For shards only its `label` counts: the place in a sample's json, such as `label`
    or `truth.objects.0.motion`. Raises ValueError if nothing is labelled."""
    selection = selection or Selection()
    if is_list(spec):
        assert isinstance(spec, str)
        return _of_files(VideoListCorpus(read_list(spec, selection, root=root), root=root))
    if selection.test_groups is not None:
        raise ValueError(f"{spec}: data.test_groups needs a list with groups, or a folder with {LABELS}; this is none")
    corpus = open_corpus(spec)
    if isinstance(corpus, VideoListCorpus):  # a folder of files, in folders by class
        return _of_files(corpus)
    labels, problems = read_labels(corpus, selection.label)
    return LabelledCorpus(corpus, labels, [*corpus.all_problems(), *problems])


def share_of(source: LabelledCorpus, share: float, seed: int) -> LabelledCorpus:
    """Return this share of the labelled samples of each class, at least one, drawn by their names and the seed.

    A larger share contains every smaller one. The corpus of a list is reduced to the drawn samples; that of shards
    stays whole."""
    by_class = defaultdict(list)
    for name, label in source.labels.items():
        by_class[label].append((seeding.key(seed, "share of labels", name), name))
    kept = {name for drawn in by_class.values() for _, name in sorted(drawn)[: max(1, round(share * len(drawn)))]}
    labels = {name: label for name, label in source.labels.items() if name in kept}
    corpus = source.corpus
    if isinstance(corpus, VideoListCorpus):
        corpus = corpus.part(kept, f"{len(kept)} of {len(source.labels)} labels, by data.share={share:g}")
    return LabelledCorpus(corpus, labels, source.problems, len(source.labels) - len(labels))


def _of_files(corpus: VideoListCorpus) -> LabelledCorpus:
    labels = corpus.labels
    unlabelled = [
        Problem(ref.name, "no_label", corpus.where(shard).removesuffix(": "))
        for shard, ref in enumerate(corpus.refs)
        if ref.name not in labels
    ]
    if not labels:
        raise ValueError(f"{corpus.origin}: none of its {len(corpus)} videos has a label ({corpus.listing.layout})")
    problems = told_once(corpus.all_problems(), unlabelled)
    if unlabelled:  # finetuning would draw the unlabelled ones and have no target for them
        corpus = corpus.part(labels, f"{len(labels):,} of {len(corpus):,} with a label")
    return LabelledCorpus(corpus, labels, problems)


def told_once(problems: Iterable[Problem], lacking: list[Problem]) -> list[Problem]:
    """Return both lists without reporting a sample twice.

    If a sample lacks a label or caption for the reason that a notice in `problems` gives, the notice is dropped and
    its detail moves to the sample's own problem."""
    problems = list(problems)
    why = {(problem.key, problem.reason): problem.detail for problem in problems if problem.reason in NOTICES}
    notices = {problem: (problem.key, problem.reason.replace("no_", "bad_")) for problem in lacking}
    told = [replace(problem, detail=why.get(notice, problem.detail)) for problem, notice in notices.items()]
    return [*(one for one in problems if (one.key, one.reason) not in set(notices.values())), *told]


def labelled_inventory(part: str, source: LabelledCorpus, listed: str = "") -> Inventory:
    """Return the inventory of a part: usable and left-out samples, with a few examples and their labels."""
    refs = source.refs
    count = min(NAMED, len(refs))
    chosen = [refs[len(refs) * k // count] for k in range(count)]
    said = [f"{ref.name}: {shown(source.labels[ref.name])}" for ref in chosen]
    layout = source.corpus.listing.layout if isinstance(source.corpus, VideoListCorpus) else ""
    lost = max(source.corpus.lost, sum(problem.reason not in NOTICES for problem in source.problems))
    more = {"layout": layout, "examples": said, "listed": listed}
    more |= {"content": source.content, "name": source.corpus.name}
    return Inventory.of(part, len(refs), source.problems, lost, source.undrawn, **more)


def refuse_unsplit(key: str, spec: str | list[str], test: LabelledCorpus) -> None:
    """Raise ValueError if test and training part are the same folder and nothing separates them."""
    listing = test.corpus.listing if isinstance(test.corpus, VideoListCorpus) else None
    if listing and listing.of_folder and not listing.chosen:
        raise ValueError(
            f"{key}={spec}: {LABELS} there has no column split with train and test, so that both parts would be "
            "the same clips: add it, set data.test_groups (groups, or a share of them), or name two lists"
        )


def written_notes(classes: Sequence[str], train: LabelledCorpus, test: LabelledCorpus) -> list[str]:
    """Return warnings about labels and groups that make the metrics misleading; empty if there are none."""
    labels, groups = [*train.sample_labels, *test.sample_labels], [*train.groups.values(), *test.groups.values()]
    notes = [single_class_note(classes), alike_note(labels), missing_note(labels)]
    return list(filter(None, [*notes, alike_note(groups, "groups"), missing_note(groups, "groups")]))


def overlap_note(train: LabelledCorpus, test: LabelledCorpus) -> str:
    """Return a warning about what training and test share; "" if nothing.

    Counted are the same files, the same bytes of a shard, copies of them, and groups of lists."""
    known = {_place(ref) for ref in train.refs}
    shared = {ref.name for ref in test.refs if _place(ref) in known} | _copies(train.refs, test.refs)
    said = []
    if shared:
        few = ", ".join(sorted(shared)[:NAMED])
        said.append(f"{len(shared)} of {len(test.refs)} test clips are training clips, too: {few}")
    if both := sorted(set(train.groups.values()) & set(test.groups.values())):
        said.append(f"{len(both)} groups are in training and test: {', '.join(both[:NAMED])}")
    return "; ".join(said)


def _place(ref: SampleRef) -> tuple[str, int]:
    return resolved(ref.shard), ref.members[ref.video][0]


def _copies(train: Sequence[SampleRef], test: Sequence[SampleRef]) -> set[str]:
    """Return the names of test samples whose video has the same bytes as a training one, wherever both are stored.

    Only local files are compared. Both ends are read for videos of equal length, and the whole only where the ends
    agree."""
    lengths = {_length(ref) for ref in train} - {0}
    alike = [ref for ref in test if _length(ref) in lengths]
    lengths = {_length(ref) for ref in alike}
    near = [ref for ref in train if _length(ref) in lengths]
    for digest in (_of_ends, _of_all):
        known, mine = [digest(ref) for ref in near], [digest(ref) for ref in alike]
        both = {*known} & {*mine}
        near = [ref for ref, of in zip(near, known) if of in both]
        alike = [ref for ref, of in zip(alike, mine) if of in both]
    return {ref.name for ref in alike}


def _length(ref: SampleRef) -> int:
    """Return the length of the sample's video in bytes; 0 if it is empty, missing, or on a server."""
    return 0 if "://" in ref.shard else max(0, ref.members[ref.video][1])


def _of_ends(ref: SampleRef) -> bytes:
    start, size = ref.members[ref.video]
    return _digest(ref, [(start, min(_END, size)), (max(start, start + size - _END), min(_END, size))])


def _of_all(ref: SampleRef) -> bytes:
    return _digest(ref, [ref.members[ref.video]])


def _digest(ref: SampleRef, parts: list[tuple[int, int]]) -> bytes:
    """Return a digest of the video's length and these parts of its shard, (start, bytes).

    If it cannot be read, the digest is of its place."""
    start, size = ref.members[ref.video]
    digest = hashlib.blake2b(f"{size}".encode(), digest_size=16)
    try:
        with open(ref.shard, "rb") as file:
            for at, count in parts:
                file.seek(at)
                digest.update(file.read(count))
    except OSError:
        digest.update(os.fsencode(f"{ref.shard} {start}"))
    return digest.digest()


def label_at(path: str) -> Callable[[dict], str]:
    """Return a reader of a json label at a dotted path, such as `label` or `truth.objects.0.motion`."""

    def read_label(fields: Any) -> str:
        for part in path.split("."):
            fields = fields[int(part)] if isinstance(fields, list) else fields[part]
        if isinstance(fields, (dict, list)):
            raise KeyError(f"{path} is no single value")
        return cleaned(str(fields))

    return read_label


def read_labels(corpus: Corpus, path: str) -> tuple[dict[str, str], list[Problem]]:
    """Return the label of each sample by its name, and the samples without one. Raises ValueError if none has one."""
    label_of = label_at(path)
    return _read_each(
        corpus,
        ["json"],
        lambda members: label_of(json_of(members["json"])),
        "no_label",
        f"no sample's json has a value at {path!r}",
        f"name the label's place, such as data.label=label or data.label={SYNTHETIC_MOTION}",
    )


def read_captions(corpus: Corpus) -> tuple[dict[str, str], list[Problem]]:
    """Return each sample's first caption by its name, and the samples without one. Raises ValueError if none has
    one."""
    return _read_each(
        corpus,
        list(CAPTION_EXTENSIONS),
        _first_caption,
        "no_caption",
        "no sample has a caption",
        "retrieval needs shards with captions (json or txt)",
    )


def _first_caption(members: dict[str, bytes]) -> str:
    if not (captions := captions_of(members)):
        raise ValueError("it has none, or an empty one")
    return captions[0]


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
    for ref, members in read_ahead(corpus, corpus.refs, extensions):
        if isinstance(members, Problem):
            problems.append(members)
            continue
        try:
            values[ref.name] = value_of(members)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            why = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            fault = json_fault(members)
            problems.append(Problem(ref.name, "broken_json", fault) if fault else Problem(ref.name, reason, why))
    if not values:
        raise ValueError(f"corpus {corpus.name!r}: {none} ({problems[0].key}: {problems[0].detail}); {hint}")
    return values, problems
