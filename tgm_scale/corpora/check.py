"""Check of shards: counts, durations, captions, broken and duplicate videos, and a contact sheet.

Videos are duplicates if their bytes are equal; near-duplicates are not searched."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tgm_scale.corpora.inspector import THUMBNAIL, SampleInspector
from tgm_scale.corpora.tally import NAMES_SHOWN, Tally
from tgm_scale.data.lists.selection import Selection
from tgm_scale.data.shards import index_cache
from tgm_scale.data.shards.index import WHOLE_SHARD, Corpus
from tgm_scale.data.shards.inventory import Inventory, corpus_inventory
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.video_list import VideoListCorpus
from tgm_scale.runtime import seeding
from tgm_scale.runtime.files import check_output, naming
from tgm_scale.runtime.processes import Crashed, OrderedPool
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import escaped

PICTURES = 48


def check(options: argparse.Namespace) -> int:
    """Check shards and return the exit code: 1 where they are not fit to train on. Raises ValueError for a mistake in
    the options."""
    if options.frames < 1 or options.workers < 1 or (options.samples is not None and options.samples < 1):
        raise ValueError("--frames, --workers and --samples: wanted at least 1")
    if options.sheet is not None and options.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--sheet {options.sheet}: wanted a name that ends with .png or .jpg")
    for option, file, kind in (("--report", options.report, "JSON file"), ("--sheet", options.sheet, "picture")):
        if file is not None:
            check_output(option, file, kind)
    corpus = open_corpus(options.shards, selection=Selection("all", "caption"))
    places = _places(corpus, options.samples)
    spread = np.linspace(0, len(places) - 1, min(PICTURES, len(places))).round().astype(int).tolist()
    pictured = set(spread) if options.sheet else set()
    opened = corpus_inventory(corpus.name, corpus)  # before the check takes hours: a shard may be replaced meanwhile
    tally, pictures = Tally(corpus), []
    sums = _Sums(corpus) if options.samples is None else None
    with OrderedPool(options.workers) as pool, ProgressBars() as bars:
        task = bars.task("samples", len(places))
        inspected = pool.map(
            SampleInspector(corpus, options.frames),
            ((*place, number in pictured) for number, place in enumerate(places)),
        )
        for place, found in zip(places, inspected):
            task.advance()
            if isinstance(found, Crashed):
                tally.crashed(corpus.sample(*place).name)
            elif isinstance(found, Exception):
                raise found
            else:
                tally.add(*place, found)
                if found.thumbnail is not None:
                    pictures.append(found.thumbnail)
                if sums is not None:
                    sums.add(*place, found.sums)
    if sums is not None:
        sums.finish()
    report = tally.report(opened)
    _print(report, opened)
    if options.report is not None:
        with naming(options.report):
            options.report.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.sheet is not None:
        with naming(options.sheet):
            _sheet(pictures).save(options.sheet)
        print(f"pictures in {options.sheet}")
    return _exit_code(report, opened, options.max_broken)


class _Sums:
    """Writer of member sums to the indices that lack them, shard by shard as they are read."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus, self.kept = corpus, 0
        self._shard, self._rows = 0, dict[int, dict[str, int]]()

    def add(self, shard: int, row: int, sums: dict[str, int]) -> None:
        if shard != self._shard:
            self._keep()
            self._shard = shard
        if sums:
            self._rows[row] = sums

    def _keep(self) -> None:
        if self._rows and not isinstance(self.corpus, VideoListCorpus):
            index_cache.add_sums(self.corpus.shards[self._shard], self._rows)
            self.kept += 1
        self._rows = {}

    def finish(self) -> None:
        self._keep()
        if self.kept:
            print(f"sums of the members were added to the indices of {self.kept:,} shards, which had none")


def _exit_code(report: dict[str, Any], opened: Inventory, tolerated: float) -> int:
    faults = [f"{reason}: {count}, see above" for reason, count in opened.left_out.items() if reason in WHOLE_SHARD]
    if opened.share > tolerated:
        faults.append(f"too many samples left out: {opened.share:.1%}, tolerated {tolerated:.1%}")
    if report["broken_share"] > tolerated:
        faults.append(f"too many broken samples: {report['broken_share']:.1%}, tolerated {tolerated:.1%}")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


@dataclass(frozen=True)
class _Places:
    """Samples by shard and row, in stored order, as arrays: pairs in a list would be 120 bytes each."""

    shards: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((int(shard), int(row)) for shard, row in zip(self.shards, self.rows))


def _places(corpus: Corpus, samples: int | None) -> _Places:
    """Return all samples, or some drawn by key."""
    chosen = np.arange(len(corpus))
    if samples is not None and samples < len(corpus):
        chosen = np.sort(seeding.permutation(seeding.key("check_shards", corpus.fingerprint), len(corpus))[:samples])
    starts = np.concatenate(([0], np.cumsum(corpus.counts)[:-1]))
    shards = np.searchsorted(starts, chosen, side="right") - 1
    return _Places(shards, chosen - starts[shards])


def _print(report: dict[str, Any], opened: Inventory) -> None:
    print(f"{escaped(report['corpus'])}: {report['samples']:,} samples in {report['shards']:,} shards")
    print("\n".join(opened.lines()))
    print(f"looked at {report['looked_at']:,}: {report['broken_share']:.2%} broken, {report['hours']:.2f} hours")
    for name in ("seconds", "frames", "short_side", "caption_words"):
        if report[name]:
            print(f"  {name.replace('_', ' ')}: least, 10 %, median, 90 %, most: " + ", ".join(map(str, report[name])))
    print("  captions a sample: " + ", ".join(f"{n} ({c:,} samples)" for n, c in report["captions_a_sample"].items()))
    for reason, found in report["broken"].items():
        _print_names(f"broken, {reason}", [f"{name}: {detail}" for name, detail in found])
    _print_names("without a caption", report["without_caption"])
    _print_names("captions that cannot be used", [f"{name}: {fault}" for name, fault in report["unfit_captions"]])
    _print_names("with a json that is none", report["broken_json"])
    _print_names("interlaced, with combs that `tgm-scale shards make` takes away", report["interlaced"])
    _print_names("groups of the same video", [" = ".join(names) for names in report["doubles"]])


def _print_names(what: str, names: list[str]) -> None:
    if names:
        print(f"  {what}: {len(names):,}")
        for name in names[:NAMES_SHOWN]:
            print(escaped(f"    {name}", keep=""))


def _sheet(pictures: list[np.ndarray], columns: int = 8) -> Image.Image:
    sheet = Image.new("RGB", (columns * THUMBNAIL, max(1, -(-len(pictures) // columns)) * THUMBNAIL))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(picture), (column * THUMBNAIL, row * THUMBNAIL))
    return sheet
