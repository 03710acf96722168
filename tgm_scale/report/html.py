"""A report as one HTML file that needs nothing beside it: pictures are in it, nothing is fetched."""

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
    """A table's cell that met what was wanted of it (`good`), or did not (`bad`)."""

    text: str
    met: bool

    @property
    def mark(self) -> str:
        return "good" if self.met else "bad"


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str | PassFail]]
    words: bool = False  # columns of words begin on the left, those of figures end on the right
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A PNG or WebP with what it shows in words (`alt`) and how to read it (`caption`)."""

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
    """HTML made by our own code, which has escaped whatever text of others is in it."""

    html: str
    kind: ClassVar[str] = "drawn"


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side where the page is wide, each under its caption."""

    pictures: Sequence[Picture]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Text | Code | Table | Picture | Gallery | Drawn]


@dataclass(frozen=True)
class Card:
    """A figure to see first."""

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
    """The report's HTML; whatever text is in it is shown as text (escaped)."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        resources.files("tgm_scale").joinpath("assets/report.html.j2").read_text(encoding="utf-8")
    )
    values: dict[str, Any] = {name: getattr(report, name) for name in Report.__dataclass_fields__}
    return template.render(**values) + "\n"
