"""Validation of an existing DIR/growth.json before its use: it may be foreign, or edited by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from tgm_scale.benchmarks.growth_start import PARTS
from tgm_scale.runtime.mistakes import refuse_damaged
from tgm_scale.runtime.outside.json_text import json_file

_REMEDY = "move it away, or name another --output"


class _Row(BaseModel):
    question: str
    name: str
    key: dict[str, Any]
    figures: dict[str, Any]


class _File(BaseModel):
    points: list[_Row]


class _Step(BaseModel):
    seconds: float
    wall_seconds: float
    peak_MB: float
    start_MB: float
    clips: int = Field(ge=1)
    visible_tokens: int = Field(ge=1)
    frames: int = Field(ge=1)
    pixels: int = Field(ge=1)
    processes: int = Field(ge=1)


class _Checkpoint(BaseModel):
    parameters: int = Field(ge=1)
    bytes: int
    stop_seconds: float
    write_seconds: float
    resume_seconds: float


class _Start(BaseModel):
    clock: dict[str, float]
    cpu: dict[str, float]
    read_MB: float
    trainer_MB: float
    worker_MB: list[float]

    @model_validator(mode="after")
    def _all_parts(self) -> _Start:
        if lacking := [part for part in PARTS if part not in self.clock or part not in self.cpu]:
            raise ValueError(f"no {lacking[0]} in clock or cpu")
        return self


class _Imports(_Start):
    imports: dict[str, float] = Field(min_length=1)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the measured points, none without the file. Raises ValueError for a file of another form."""
    if not file.is_file():
        return []
    found = json_file(file, finite=True)
    refuse_damaged(_File, found, file, _REMEDY)
    return list(found["points"])


def refuse_other(kind: str, name: str, figures: Any, file: Path) -> None:
    """Raise ValueError for kept figures that do not fit a point of this kind and name; None stands for no figures."""
    wanted = {"step": _Step, "checkpoint": _Checkpoint}.get(kind, _Imports if name == "imports" else _Start)
    if figures is not None:
        refuse_damaged(wanted, figures, file, _REMEDY)
