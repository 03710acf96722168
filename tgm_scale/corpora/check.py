"""Check shards: counts, durations, captions, broken and duplicate videos, and a contact sheet.

Videos are the same where their bytes are; near-copies are not looked for."""

from __future__ import annotations

import argparse
import hashlib
import json
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from tgm_scale.contracts import Problem
from tgm_scale.data.building.annotations import captions_of, json_fault, unfit_captions
from tgm_scale.data.lists.selection import Selection
from tgm_scale.data.shards import index_cache
from tgm_scale.data.shards.index import WHOLE_SHARD, Corpus, DamagedMember
from tgm_scale.data.shards.inventory import Inventory, corpus_inventory
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.video_list import VideoListCorpus
from tgm_scale.data.video.decode import DecodeError, Video
from tgm_scale.runtime import seeding
from tgm_scale.runtime.files import check_output
from tgm_scale.runtime.processes import Crashed, OrderedPool
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import escaped

THUMBNAIL = 112  # pixels, the longer side
NAMES_SHOWN = 5
PICTURES = 48
QUANTILES = (0, 0.1, 0.5, 0.9, 1)


def check(options: argparse.Namespace) -> int:
    """The exit code: 1 where they are not fit to train on. Raises ValueError for a mistake in the options."""
    if options.frames < 1 or options.workers < 1 or (options.samples is not None and options.samples < 1):
        raise ValueError("--frames, --workers and --samples: wanted at least 1")
    if options.sheet is not None and options.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--sheet {options.sheet}: wanted a name that ends with .png or .jpg")
    for option, file, kind in (("--report", options.report, "JSON file"), ("--sheet", options.sheet, "picture")):
        if file is not None:
            check_output(option, file, kind)
    corpus = open_corpus(options.shards, selection=Selection("all", "caption"))
    places = _places(corpus, options.samples)
    spread = np.linspace(0, len(places) - 1, min(PICTURES, len(places))).round().astype(int)
    pictured = {places[k] for k in spread} if options.sheet else set()
    findings, crashed = [], []
    sums = _Sums(corpus) if options.samples is None else None
    with OrderedPool(options.workers) as pool, ProgressBars() as bars:
        task = bars.task("samples", len(places))
        inspected = pool.map(
            SampleInspector(corpus, options.frames), ((*place, place in pictured) for place in places)
        )
        for place, found in zip(places, inspected):
            task.advance()
            if isinstance(found, Crashed):
                crashed.append(corpus.sample(*place).name)
            elif isinstance(found, Exception):
                raise found
            else:
                findings.append(found)
                if sums is not None:
                    sums.add(*place, found.sums)
    if sums is not None:
        sums.finish()
    opened = corpus_inventory(corpus.name, corpus)
    report = _report(corpus, findings, crashed, opened)
    _print(report, opened)
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if options.sheet is not None:
        _sheet([finding.thumbnail for finding in findings if finding.thumbnail is not None]).save(options.sheet)
        print(f"pictures in {options.sheet}")
    return _exit_code(report, opened, options.max_broken)


class _Sums:
    """Adds sums of members to the indices that have none, shard by shard as they are read."""

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


def _places(corpus: Corpus, samples: int | None) -> list[tuple[int, int]]:
    """(shard, row) of all samples, or of some that are drawn by key; in the order in which they lie."""
    chosen = np.arange(len(corpus))
    if samples is not None and samples < len(corpus):
        chosen = np.sort(seeding.permutation(seeding.key("check_shards", corpus.fingerprint), len(corpus))[:samples])
    starts = np.concatenate(([0], np.cumsum(corpus.counts)[:-1]))
    shards = np.searchsorted(starts, chosen, side="right") - 1
    return [(int(shard), int(row)) for shard, row in zip(shards, chosen - starts[shards])]


def _report(corpus: Corpus, findings: list[SampleStats], crashed: list[str], opened: Inventory) -> dict[str, Any]:
    broken = defaultdict(list)
    for finding in findings:
        if finding.problem is not None:
            broken[finding.problem.reason].append([finding.name, finding.problem.detail])
    if crashed:
        broken["decoder_crashed"] = [[name, "the decoding process died"] for name in crashed]
    whole = [finding for finding in findings if finding.problem is None]
    looked_at = len(findings) + len(crashed)
    findings = [finding for finding in findings if finding.digest]  # of others nothing is known
    captions = [caption for finding in findings for caption in finding.captions]
    return {
        "corpus": corpus.name,
        "fingerprint": corpus.fingerprint,
        "shards": len(corpus.shards),
        "samples": len(corpus),
        "left_out": dict(corpus.left_out),
        "opened": opened.as_dict(),
        "looked_at": looked_at,
        "broken": dict(broken),
        "broken_share": sum(map(len, broken.values())) / looked_at,
        "seconds": _quantiles([finding.seconds for finding in whole]),
        "hours": sum(finding.seconds for finding in whole) / 3600,
        "frames": _quantiles([finding.frames for finding in whole]),
        "short_side": _quantiles([min(finding.width, finding.height) for finding in whole]),
        "captions_a_sample": dict(sorted(Counter(len(finding.captions) for finding in findings).items())),
        "caption_words": _quantiles([len(caption.split()) for caption in captions]),
        "commonest_captions": Counter(captions).most_common(NAMES_SHOWN),
        "without_caption": [finding.name for finding in findings if not finding.captions],
        "unfit_captions": [[finding.name, fault] for finding in findings for fault in finding.unfit_captions],
        "broken_json": [finding.name for finding in findings if finding.json_broken],
        "interlaced": [finding.name for finding in findings if finding.interlaced],
        "doubles": _duplicates(findings),
    }


def _quantiles(values: list[Any]) -> list[float]:
    return [round(float(value), 3) for value in np.quantile(values, QUANTILES)] if values else []


def _duplicates(findings: list[SampleStats]) -> list[list[str]]:
    same = defaultdict(list)
    for finding in findings:
        same[finding.digest].append(finding.name)
    return [names for names in same.values() if len(names) > 1]


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


@dataclass
class SampleStats:
    """One sample. Without a problem: its length, its size, and a small picture of its middle frame if asked for."""

    name: str
    digest: str = ""  # of the video's bytes; "" where they are not those that were indexed
    captions: list[str] = field(default_factory=list)
    json_broken: bool = False
    unfit_captions: list[str] = field(default_factory=list)  # what is wrong with each, in words
    sums: dict[str, int] = field(default_factory=dict)  # zlib.crc32 of each member, where the index has none
    seconds: float = 0.0
    frames: int = 0
    width: int = 0
    height: int = 0
    interlaced: bool = False
    problem: Problem | None = None
    thumbnail: np.ndarray | None = None  # uint8 [h, w, 3]


class SampleInspector:
    """Inspects samples of a corpus, in worker processes. `decode`: number of frames of each, evenly spaced."""

    def __init__(self, corpus: Corpus, decode: int):
        self.corpus, self.decode = corpus, decode

    def __call__(self, shard: int, row: int, thumbnail: bool) -> SampleStats:
        """All members are read, and compared with their sums. Raises OSError where the shard cannot be read."""
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
    import torch.nn.functional as F  # here: a check without pictures does without torch
    from torch import from_numpy

    height, width, _ = image_HW3.shape
    scale = THUMBNAIL / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels_13HW = from_numpy(np.ascontiguousarray(image_HW3)).permute(2, 0, 1)[None]
    return F.interpolate(pixels_13HW, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
