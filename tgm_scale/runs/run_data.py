"""RUN/data.json: the corpora that a run reads, by content. A start on other data is refused, with the names of the
shards that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tgm_scale.checkpoints import folders
from tgm_scale.runtime.mistakes import refuse_damaged
from tgm_scale.runtime.outside.json_text import json_file

FILE = "data.json"
_NAMED = 5  # of many shards
_SAVED = "give the data of before, or a new run.dir (there, train.init_from starts from these weights)"
_NOTHING_SAVED = "restore it; or, since the run has saved nothing yet, remove its folder or give another run.dir"


class _Corpus(BaseModel):
    name: str
    part: str | None = None
    samples: int | None = None
    fingerprint: str | None = None
    content: str | None = None
    shards: dict[str, str] = {}
    left_out: dict[str, int] = {}


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the corpora of the run so far, from its data.json. Raises ValueError where that is damaged."""
    file = folder / FILE
    found = json_file(file)
    refuse_damaged(list[_Corpus], found, file, "restore it")
    return found


def refuse_other(folder: Path, corpora: list[dict[str, Any]]) -> None:
    """Raise ValueError where the corpora are not those of the run so far."""
    file = folder / FILE
    if file.is_file() and _other_data(before := read(folder), corpora):
        saved = any(folders.step_of(one) is not None for one in folder.glob("checkpoints/step-*"))
        saved = saved or any(folder.glob("checkpoints/damaged-step-*"))  # they may contain trained weights
        raise ValueError(
            f"{file}: the run was started on other data: {_SAVED if saved else _NOTHING_SAVED} (it was "
            f"{_summary(before)}; now {_summary(corpora)}{_other_shards(before, corpora)})"
        )


def _other_data(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> bool:
    """Return whether samples, captions, labels or their order differ. Fields that an earlier version did not record
    (the content of lists, the test part) are not compared."""
    if not any(corpus.get("part") == "test" for corpus in before):
        now = [corpus for corpus in now if corpus.get("part") != "test"]
    if len(before) != len(now):
        return True
    return any(
        one.get(key) != other.get(key)
        for one, other in zip(before, now)
        for key in ("name", "samples", "fingerprint", "content")
        if key != "content" or key in one
    )


def _other_shards(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Return a text on the shards that are lacking, changed or new, a few of each."""
    there, here = (
        {name: mark for one in each for name, mark in one.get("shards", {}).items()} for each in (before, now)
    )
    if not there:
        return ""  # recorded by an earlier version
    kinds = {
        "lacking": there.keys() - here.keys(),
        "changed": {name for name in there.keys() & here.keys() if there[name] != here[name]},
        "new": here.keys() - there.keys(),
    }
    return "".join(
        f"; {kind}: {', '.join(f'{name}.tar' for name in sorted(names)[:_NAMED])}{', ...' * (len(names) > _NAMED)}"
        for kind, names in kinds.items()
        if names
    )


def _summary(corpora: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{corpus['name']}: {corpus.get('samples')} samples, "
        f"{' '.join(filter(None, (corpus.get('fingerprint'), corpus.get('content'))))}"
        for corpus in corpora
    )
