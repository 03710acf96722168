"""The page of a run in Chromium: at both widths and in both themes, without an error, and nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import THEMES, browsed
from made_run import made_run, row
from PIL import Image

from tgm_scale.report.run_page import open_runs, write_page
from tgm_scale.runs import pictures


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [row(step) for step in range(1, 1001)]
    rows[500] |= {"loss": None, "not_finite": ["loss"], "update_refused": True, "refusal": "the loss is not finite"}
    folder = made_run(tmp_path_factory.mktemp("runs") / "one", rows)
    pictures.keep(folder, 1000, Image.new("RGB", (622, 400), (200, 30, 90)))
    file, views = open_runs([str(folder)], None)
    write_page(file, views)
    return file.read_text()


@pytest.mark.parametrize("theme", THEMES)
def test_a_browser_shows_it_wide_and_narrow_without_an_error(page: str, tmp_path: Path, theme: int) -> None:
    looks, console = browsed(tmp_path, page, theme)
    assert [one["width"] for one in looks] == [1280, 400] and console == ""
    for one in looks:
        assert one["wide"] == one["width"] and one["panels"] > 12 and one["fetched"] == []
        assert one["paper"] == THEMES[theme] and one["pictures"] == [622]
        assert one["label"] >= 11.5  # pixels that a line of text takes


def test_the_look_in_the_browser_can_fail(page: str, tmp_path: Path) -> None:
    bad = "<img src='http://127.0.0.1:9/x.png'><p style='width:1400px;max-width:none'>x</p>"
    bad += "<script>console.error('hm')</script></body>"
    looks, console = browsed(tmp_path, page.replace("</body>", bad))
    assert looks[1]["fetched"] == ["http://127.0.0.1:9/x.png"] and looks[1]["wide"] > 1280 and "hm" in console
