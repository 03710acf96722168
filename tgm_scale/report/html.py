"""A report as one self-contained HTML file: pictures are embedded, nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, ClassVar

import jinja2


@dataclass(frozen=True)
class Text:
    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Code:
    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class PassFail:
    """A table cell that met its criterion (`good`), or did not (`bad`)."""

    text: str
    met: bool

    @property
    def mark(self) -> str:
        return "good" if self.met else "bad"


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str | PassFail]]
    words: bool = False  # columns of words are left-aligned, those of numbers right-aligned
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A PNG or WebP with a description (`alt`) and a note on reading it (`caption`)."""

    png: bytes
    alt: str
    caption: str
    kind: ClassVar[str] = "figure"

    @property
    def mime(self) -> str:
        return "image/webp" if self.png.startswith(b"RIFF") else "image/png"

    @property
    def data(self) -> str:
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Drawn:
    """HTML from our own code, which has escaped any foreign text in it."""

    html: str
    kind: ClassVar[str] = "drawn"


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side on a wide page, each with its caption."""

    pictures: Sequence[Picture]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Text | Code | Table | Picture | Gallery | Drawn]


@dataclass(frozen=True)
class Card:
    """A headline figure at the top of the page."""

    value: str
    text: str


@dataclass(frozen=True)
class Report:
    title: str
    lead: str
    sections: Sequence[Section]
    cards: Sequence[Card] = field(default_factory=tuple)
    footer: str = ""
    style: str = ""  # CSS of its own


def render(report: Report) -> str:
    """Return the report's HTML, with all text escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        resources.files("tgm_scale").joinpath("assets/report.html.j2").read_text(encoding="utf-8")
    )
    values: dict[str, Any] = {name: getattr(report, name) for name in Report.__dataclass_fields__}
    return template.render(**values) + "\n"
