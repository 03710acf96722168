"""Inventory of what was opened and what was left out, reported in the same form wherever data is opened.

It is printed at the start, and recorded in the run's data.json or results.json and in `tgm-scale status`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tgm_scale.contracts import NOTICES, Problem, lost_and_noted
from tgm_scale.data.access import storage
from tgm_scale.data.building.annotations import CAPTION_EXTENSIONS, caption_fault, captions_of
from tgm_scale.data.lists.text import shown
from tgm_scale.data.shards.index import Corpus, DamagedMember, SampleRef
from tgm_scale.runtime.terminal import escaped, without_secrets

LEFT_OUT = "left_out.jsonl"
SAMPLED = 24  # samples: a corpus with captions on a quarter of them is refused once in a thousand times
NAMED = 3  # names per reason, and examples, that are shown


@dataclass(frozen=True)
class Inventory:
    """Inventory of one part of the data. share: of its samples, left out; a missing shard is estimated from the
    others."""

    part: str
    usable: int
    left_out: dict[str, int]
    first: dict[str, list[str]]  # by reason, the first ones left out
    share: float
    layout: str = ""  # how a list was interpreted
    examples: list[str] = field(default_factory=list)
    listed: str = ""  # the file that names all that was left out
    content: str = ""  # a digest of the names and labels of labelled samples
    name: str = ""  # of the corpus

    @classmethod
    def of(
        cls,
        part: str,
        usable: int,
        problems: Iterable[Problem],
        lost: float | None = None,
        undrawn: int = 0,
        **more: Any,
    ) -> Inventory:
        """Create the inventory of a part. lost: how many samples the problems stand for (default: one each, none
        where the sample is still used). undrawn: usable samples that are not used."""
        count: defaultdict[str, int] = defaultdict(int)
        first: defaultdict[str, list[str]] = defaultdict(list)
        for problem in problems:
            count[problem.reason] += 1
            if len(first[problem.reason]) < NAMED:
                first[problem.reason].append(": ".join(filter(None, (problem.key, problem.detail))))
        if lost is None:
            lost = sum(number for reason, number in count.items() if reason not in NOTICES)
        share = lost / (usable + undrawn + lost) if usable + lost else 0.0
        return cls(part, usable, dict(sorted(count.items())), dict(first), round(share, 6), **more)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        found = [f"{self.part}: {self.usable:,} usable" + (f" ({self.layout})" if self.layout else "")]
        found += [f"  such as {example}" for example in self.examples]
        listed = f" (all named in {self.listed}{' of the run' * (self.listed == LEFT_OUT)})" if self.listed else ""
        lost, noted = lost_and_noted(self.left_out)
        for head, counts in ((f"left out, {self.share:.2%}", lost), ("noted, no sample is left out by it", noted)):
            found += [f"  {head}{listed}:"] if counts else []
            for reason, count in counts.items():
                names = "; ".join(self.first[reason])
                found.append(f"    {reason}: {count:,} ({names}{'; ...' if count > len(self.first[reason]) else ''})")
        return [escaped(without_secrets(line), keep="") for line in found]


def corpus_inventory(part: str, corpus: Corpus, listed: str = "", captions: bool = True) -> Inventory:
    """Return the inventory of an opened corpus, with a few samples and their captions."""
    listing = getattr(corpus, "listing", None)
    layout = getattr(listing, "layout", "")
    bare = len(getattr(corpus, "uncaptioned", [])) if captions else 0
    if 0 < bare < len(corpus):
        layout += f"; {bare:,} of {len(corpus):,} without a caption"
    found = examples(corpus) if captions else []
    return Inventory.of(
        part, len(corpus), corpus.all_problems(), corpus.lost, layout=layout, examples=found, listed=listed
    )


def examples(corpus: Corpus) -> list[str]:
    """Return names and captions of a few samples spread over the corpus."""
    spread = sorted({len(corpus.counts) * k // NAMED for k in range(NAMED)})
    places = [(shard, 0) for shard in spread]
    places += [(0, row) for row in range(1, int(corpus.counts[0])) if len(corpus.counts) < NAMED]
    found = []
    for shard, row in islice(places, NAMED):
        ref = corpus.sample(shard, row)
        try:
            captions = captions_of(corpus.read(ref, CAPTION_EXTENSIONS))
            text = ", ".join(shown(caption) for caption in captions[:NAMED]) or "no caption"
        except DamagedMember as error:
            text = error.problem.reason
        found.append(f"{ref.name}: {text}")
    return found


def refuse_without_captions(opened: Sequence[Corpus], remedy: str) -> None:
    """Raise ValueError where none of some samples spread over a corpus has a caption: such a run would learn
    nothing from them, and fail only after some steps. remedy: the settings that work without captions."""
    for corpus in opened:
        looked_at = texts_of_some(corpus)
        if not any(captions_of(members) for members in looked_at.values()):
            raise ValueError(
                f"corpus {corpus.name!r}: none of {len(looked_at)} samples looked at has a caption "
                f"({_why_none(corpus, looked_at)}): captions are read from json (caption, captions) or txt "
                f"members, files beside the videos, or a list's column caption; to do without them add {remedy}"
            )


def _why_none(corpus: Corpus, looked_at: Mapping[str, dict[str, bytes]]) -> str:
    """Return what is wrong with the first unusable caption; where there is none, name the first sample."""
    of_list = [(problem.key, problem.detail) for problem in corpus.all_problems() if problem.reason == "bad_caption"]
    of_members = [(name, fault[1]) for name, members in looked_at.items() if (fault := caption_fault(members))]
    for name, why in [*of_list, *of_members]:
        return f"{name}: {why}"
    return f"{next(iter(looked_at))} is the first"


def captions_of_some(corpus: Corpus) -> dict[str, list[str]]:
    """Return the captions of some samples spread over a corpus, by their names. Raises DamagedMember where none of
    them can be read."""
    return {name: captions_of(members) for name, members in texts_of_some(corpus).items()}


def refs_of_some(corpus: Corpus, count: int) -> list[SampleRef]:
    """Return `count` samples spread over a corpus, or all."""
    starts = corpus.counts.cumsum() - corpus.counts
    chosen = sorted({len(corpus) * k // count for k in range(count)})
    shards = starts.searchsorted(chosen, side="right") - 1
    return [corpus.sample(int(shard), int(k - starts[shard])) for k, shard in zip(chosen, shards)]


def texts_of_some(corpus: Corpus) -> dict[str, dict[str, bytes]]:
    """Return the caption members of some samples spread over a corpus. Raises as `captions_of_some` does."""
    found: dict[str, dict[str, bytes]] = {}
    damaged: DamagedMember | None = None
    for ref in refs_of_some(corpus, SAMPLED):
        try:
            found[ref.name] = corpus.read(ref, CAPTION_EXTENSIONS)
        except DamagedMember as error:  # it is named when the run reaches it
            damaged = error
    if damaged and not found:
        raise damaged
    return found


def report_opened(folder: Path, corpus: Corpus, limit: float) -> None:
    """Print what was opened and left out, for a tool that writes new shards into `folder`; FOLDER/left_out.jsonl
    names all that was left out. Raises ValueError where its share exceeds `limit` (--max-left-out)."""
    found = corpus_inventory(corpus.name, corpus, str(folder / LEFT_OUT))
    if corpus.left_out:
        write_left_out(folder / LEFT_OUT, [(corpus.name, corpus.all_problems())])
    refuse_above([found], limit, "--max-left-out")
    print("\n".join(found.lines()), flush=True)


def refuse_above(inventories: Sequence[Inventory], limit: float, key: str = "data.max_left_out_share") -> None:
    """Raise ValueError where a part lost more than the share `limit` of its samples."""
    for inventory in inventories:
        if inventory.share > limit:
            raise ValueError(
                f"{inventory.share:.1%} of the samples were left out, more than {key}={limit}:\n"
                + "\n".join(inventory.lines())
                + "\nmend the data, or raise the limit"
            )


def write_left_out(path: Path, parts: Iterable[tuple[str, Iterable[Problem]]]) -> None:
    """Write the names of all that was left out, one a line."""
    rows = (json.dumps({"part": part, **asdict(problem)}) for part, problems in parts for problem in problems)
    storage.write_atomically(path, "".join(f"{row}\n" for row in rows).encode())
