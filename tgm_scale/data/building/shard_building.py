"""Shards made from a plan of clips and a folder of videos; resumes where an earlier run was stopped.

The folder holds `NNNNN.tar` with its index, `NNNNN.report.json` (written last: the mark of a finished shard), and
`make_shards.json` (what the shards were made from). Which clip goes into which shard depends on the annotations
alone, never on workers, tasks or the videos found, so any number of tasks can share the work, and a run that was
killed ends with the same bytes as one that was not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import tee
from pathlib import Path

from pydantic import BaseModel, Field

from tgm_scale.contracts import Problem
from tgm_scale.data.access import storage
from tgm_scale.data.building.annotations import ClipRow, Filters, Plan
from tgm_scale.data.building.clip_sources import ClipSources
from tgm_scale.data.building.key_files import GroupedLines
from tgm_scale.data.defaults import CRF, GOP, SHORT_SIDE
from tgm_scale.data.shards.tars import ShardWriter, is_whole, shard_path
from tgm_scale.data.video.encode import CutError, EncodedClip, cut_clip
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.processes import Crashed, OrderedPool

SETTINGS = "make_shards.json"
REPORT = "report.json"
NAMES_SHOWN = 5  # for each reason, when a task ends


@dataclass(frozen=True)
class EncodingOptions:
    short_side: int = SHORT_SIDE
    gop: int = GOP
    crf: int = CRF


def open_output(folder: Path, plan: Plan, encoding: EncodingOptions) -> None:
    """Record in the folder what its shards are made from. Raises ValueError if it holds shards of other settings."""
    settings = {
        "annotations": plan.digest,
        "filters": asdict(plan.filters),
        "clips_per_shard": plan.clips_per_shard,
        "encoding": asdict(encoding),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if not path.exists() and any(folder.glob("*.tar")):
        raise ValueError(f"--output {folder} holds shards that this tool did not make; name another folder")
    if storage.written_first(path, _plain(settings)):
        return
    before = json_object(path)
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        was = ", ".join(f"{name} {before.get(name)} -> {settings[name]}" for name in changed)
        raise ValueError(f"--output {folder} holds shards made otherwise ({was}); name another folder, or delete it")


def remove_if_empty(folder: Path) -> None:
    """Undo `open_output` if no shard was made, so that other settings may follow."""
    if not any(folder.glob("*.tar*")) and not any(folder.glob(f"*.{REPORT}")):
        (folder / SETTINGS).unlink(missing_ok=True)


def unfinished(folder: Path, shards: range) -> list[int]:
    """Return the shards still to be made, including those for which no video was found, as in a wrong folder, and
    those whose tar is missing or truncated."""
    return [shard for shard in shards if not _report_path(folder, shard).exists() or _to_be_made_anew(folder, shard)]


def _to_be_made_anew(folder: Path, shard: int) -> bool:
    report = _read_report(_report_path(folder, shard))
    if report.made:
        return not is_whole(shard_path(folder, shard))
    return all(reason == "missing_video" for _, reason, _ in report.skipped)


def build_shards(
    plan: Plan,
    videos: Path,
    folder: Path,
    shards: list[int],
    encoding: EncodingOptions,
    workers: int,
) -> Iterator[Problem | None]:
    """Make these shards during iteration: yield None for each clip, or why it could not be made and is left out."""
    cut = partial(cut_clip, **asdict(encoding))
    sources = ClipSources(videos, plan.has_path)
    planned = ((shard, clips, sources.spans(clips)) for shard, clips in zip(shards, plan.clips_of(shards, folder)))
    ahead, now = tee(planned)
    with OrderedPool(workers) as pool:
        results = pool.map(cut, (span for _, _, spans in ahead for span in spans if not isinstance(span, CutError)))
        for shard, clips, spans in now:
            pairs = (
                (clip, span if isinstance(span, CutError) else _fitting(plan.filters, clip, next(results)))
                for clip, span in zip(clips, spans)
            )
            yield from _make_shard(folder, shard, len(clips), pairs)


def _fitting(filters: Filters, clip: ClipRow, made: EncodedClip | Exception) -> EncodedClip | Exception:
    """Return the clip, or an error if its length is out of bounds, which is known only now for a whole file."""
    if isinstance(made, Exception) or not clip.whole:
        return made
    seconds = made.frames / made.fps
    reason = filters.length_rejection(seconds)
    return made if reason is None else CutError(reason, f"the file has {seconds:.3f} seconds")


def _make_shard(
    folder: Path,
    shard: int,
    count: int,
    clips: Iterator[tuple[ClipRow, EncodedClip | Exception]],
) -> Iterator[Problem | None]:
    storage.drop_left_over(folder, f"{shard:05d}.*")
    skipped = []
    with ShardWriter(folder, clips_per_shard=count, first=shard) as writer:
        for clip, result in clips:
            if isinstance(result, Exception):
                problem = _problem(clip, result)
                skipped.append([problem.key, problem.reason, problem.detail])
                yield problem
            else:
                writer.write(clip.key, {"mp4": result.data, "json": _metadata(clip, result)})
                yield None
    report = {"made": count - len(skipped), "skipped": skipped}
    storage.write_atomically(_report_path(folder, shard), _plain(report))


def _problem(clip: ClipRow, error: Exception) -> Problem:
    """Return the problem of a clip. Raises errors that are the machine's or our own fault rather than the video's."""
    if isinstance(error, CutError):
        return Problem(clip.key, error.reason, error.detail)
    if isinstance(error, Crashed):
        return Problem(clip.key, "decoder_crashed", str(error))
    if isinstance(error, (OSError, MemoryError, AssertionError)):
        raise error
    return Problem(clip.key, "decoder_failed", f"{type(error).__name__}: {error}")


def _metadata(clip: ClipRow, made: EncodedClip) -> dict:
    return {
        "captions": clip.captions,
        "umt_scores": clip.umt,
        "aesthetic_score": clip.aesthetic,
        "video": clip.video,
        "start_seconds": clip.start / 1000,
        "end_seconds": clip.end / 1000,
        "frames": made.frames,
        "fps": made.fps,
        "width": made.width,
        "height": made.height,
        **({} if clip.label is None else {"label": clip.label}),
    }


def write_report(folder: Path, plan: Plan) -> dict:
    """Gather the shards' reports into `report.json` and return it, limited to the first names of each reason. Tasks
    that end side by side each write it; it is rewritten for as long as shards were finished meanwhile, so the last
    one is complete."""
    counted = -1
    report: dict = {}
    while (finished := len(done := _finished(folder, plan))) != counted:
        counted = finished
        names = GroupedLines(folder)  # for millions of clips that could not be made: not in memory
        report = _gather(plan, done, names)
        storage.write_atomically(folder / REPORT, _written(report, names))
    return report


def _gather(plan: Plan, done: list[Path], names: GroupedLines) -> dict:
    """Return the report, and add to `names` a line of JSON for each name, grouped by reason."""
    skipped: dict[str, dict] = {}
    made = 0

    def note(reason: str, name: str, detail: str) -> None:
        one = skipped.setdefault(reason, {"count": 0, "names": []})
        one["count"] += 1
        if one["count"] <= NAMES_SHOWN:
            one["names"].append([name, detail])
        names.add(reason, json.dumps([name, detail]).encode())

    for path in done:
        of_shard = _read_report(path)
        made += of_shard.made
        for key, reason, detail in of_shard.skipped:
            note(reason, key, detail)
    for problem in plan.problems:
        note(problem.reason, problem.key, problem.detail)
    return {
        "rows": plan.rows,
        "rows_filtered": dict(sorted(Counter(plan.left_out).items())),
        "clips": plan.clips,
        "shards": {"finished": len(done), "planned": plan.shards},
        "made": made,
        "skipped": dict(sorted(skipped.items())),
    }


def _written(report: dict, names: GroupedLines) -> Iterator[bytes]:
    yield json.dumps({**report, "skipped": {}}, indent=1).removesuffix("}\n}").encode()
    for number, (reason, one) in enumerate(report["skipped"].items()):
        yield b"," * (number > 0) + f'\n  {json.dumps(reason)}: {{"count": {one["count"]}, "names": ['.encode()
        for at, line in enumerate(names.of_group(reason)):
            yield b"," * (at > 0) + b"\n   " + line
        yield b"]}"
    yield b"}\n}\n"


class _Report(BaseModel):
    made: int = Field(ge=0)
    skipped: list[tuple[str, str, str]]


def _read_report(path: Path) -> _Report:
    try:
        return _Report.model_validate(json_object(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: delete it and its shard, which is then rebuilt ({error})") from None


def _finished(folder: Path, plan: Plan) -> list[Path]:
    paths = [(shard, path) for shard in range(plan.shards) if (path := _report_path(folder, shard)).exists()]
    return [path for shard, path in paths if not _read_report(path).made or is_whole(shard_path(folder, shard))]


def _report_path(folder: Path, shard: int) -> Path:
    return shard_path(folder, shard).with_suffix(".report.json")


def _plain(value: dict) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
