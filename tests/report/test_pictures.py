"""Film strips, curves and the page: what is drawn where, checked in pixels and in parsed HTML."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import torch
from PIL import Image

from tgm_scale.demo import plots
from tgm_scale.report import html, render


def frames(slots: int = 2, side: int = 16) -> torch.Tensor:
    return torch.randint(256, (slots, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_slot_is_shown_by_its_first_frame() -> None:
    video = torch.arange(8, dtype=torch.uint8).view(1, 8, 1, 1).expand(3, 8, 4, 4)
    assert render.slot_frames(video, 4)[:, 0, 0, 0].tolist() == [0, 2, 4, 6]


def test_hidden_tokens_are_paper_and_shown_ones_untouched() -> None:
    shown = torch.zeros(2, 4, 4, dtype=torch.bool)
    shown[0, 1, 2] = shown[1, 3, 0] = True
    picture, original = render.veiled(frames(), shown), frames()
    assert torch.equal(picture[0, :, 4:8, 8:12], original[0, :, 4:8, 8:12])
    assert torch.equal(picture[1, :, 12:, :4], original[1, :, 12:, :4])
    assert len(picture[0, :, :4].flatten(1).unique(dim=1).T) == 1


def test_heat_is_brightest_where_relevance_is_highest() -> None:
    relevance = torch.zeros(2, 4, 4)
    relevance[1, 2, 1] = 1.0
    grey = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    light = render.heatmap(grey, relevance).float().sum(1)
    slot, row, column = np.unravel_index(int(light.argmax()), light.shape)
    assert (slot, row // 4, column // 4) == (1, 2, 1)
    assert torch.equal(render.heatmap(grey, relevance), render.heatmap(grey, relevance * 7 - 3)), "a scale of its own"
    assert render.heatmap(grey, torch.zeros(2, 4, 4)).float().std(dim=(0, 2, 3)).max() == 0, "a flat map is one colour"


def test_an_outline_runs_inside_the_object() -> None:
    visible = torch.zeros(1, 16, 16, dtype=torch.bool)
    visible[0, 4:10, 5:12] = True
    drawn = (render.outlined(frames(1), visible) != frames(1)).any(1)[0]
    ring = visible[0].clone()
    ring[5:9, 6:11] = False
    assert torch.equal(drawn, ring)


def test_a_strip_holds_every_picture_enlarged() -> None:
    original = frames(3)
    sheet = pixels(render.film_strip([("first", original), ("second", original.flip(0))], side=32))
    assert sheet.shape[0] == 2 * 32 + 6
    enlarged = original[1].permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
    left = 150 + 1 * (32 + 6)
    assert (sheet[:32, left : left + 32] == enlarged).all()
    assert (sheet[38:70, left : left + 32] == enlarged).all()
    assert (sheet[:32, :150] < 200).any(), "the label is drawn"


def test_the_running_mean_is_that_of_its_definition() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    assert plots.smoothed(values, 2).tolist() == [3.0, 2.0, 2.5, 2.5, 3.0]
    assert plots.smoothed(values, 1).tolist() == values


def test_plots_are_pictures_and_the_same_twice() -> None:
    curve = {"loss": {"joint": ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])}, "other": {"mae": ([1.0, 2.0], [1.0, 1.0])}}
    bars = {"kNN": {"joint": (0.5, 0.01), "random": (0.2, 0.0)}, "probe": {"joint": (0.7, 0.1), "random": (0.4, 0.1)}}
    assert plots.curves(curve) == plots.curves(curve)
    assert pixels(plots.curves(curve)).std() > 5
    assert pixels(plots.bars("accuracy", bars)).std() > 5


def test_every_curve_is_drawn_however_many() -> None:
    """Each further run changes the picture: none is left out for want of a colour."""
    pictures = [plots.curves({"loss": {str(i): ([0.0, 1.0], [1.0, float(i)]) for i in range(n)}}) for n in range(5, 9)]
    assert len(set(pictures)) == len(pictures)


class _Reader(HTMLParser):
    """Collects cells, images and anything that would be fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[bytes] = []
        self.fetched: list[str] = []
        self.marks: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "img":
            assert values["src"].startswith("data:image/png;base64,") and values["alt"]
            self.images.append(base64.b64decode(values["src"].split(",", 1)[1]))
        elif "src" in values or "href" in values or tag in ("script", "link"):
            self.fetched.append(tag)
        if tag == "td" and "class" in values:
            self.marks.append(values["class"])

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_fetches_nothing() -> None:
    png = render.film_strip([("row", frames())])
    blocks = [
        html.Text("a < b & c"),
        html.Table(
            ["figure", "value"], [["hidden", html.PassFail("0.95", True)], ["rest", html.PassFail("0.80", False)]]
        ),
        html.Picture(png, "a strip", "how to read it"),
        html.Code("tgm-scale pretrain"),
    ]
    page = html.render(
        html.Report("Title", "Lead", [html.Section("One", blocks)], [html.Card("0.95", "hidden")], footer="made today")
    )
    read = _Reader(page)
    assert read.images == [png] and not read.fetched
    assert read.marks == ["good", "bad"]
    for words in ("Title", "a < b & c", "hidden", "0.80", "how to read it", "tgm-scale pretrain", "made today"):
        assert words in read.text
    assert "a &lt; b &amp; c" in page
