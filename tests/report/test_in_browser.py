"""The page of a run in Chromium: at both widths and in both themes, without an error, and nothing is fetched."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made_run import made_run, row

from tgm_scale.report.run_page import report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [row(step) for step in range(1, 1001)]
    rows[500] |= {"loss": None, "not_finite": ["loss"], "update_refused": True, "refusal": "the loss is not finite"}
    return report([str(made_run(tmp_path_factory.mktemp("runs") / "one", rows))], None).read_text()


_LOOK = """<script>addEventListener("load", () => parent.postMessage({
  width: innerWidth, wide: document.documentElement.scrollWidth, panels: document.querySelectorAll("svg").length,
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color, label: Math.min(...[...document.querySelectorAll("svg text")].map(
    text => text.getBoundingClientRect().height)),
  fetched: performance.getEntriesByType("resource").map(one => one.name)}, "*"))</script>"""
_FRAME = """<!doctype html><iframe width=1280 height=900 src=page.html></iframe><iframe width=400 height=900
src=page.html></iframe><script>const found = []; addEventListener("message", told => { found.push(told.data);
document.documentElement.dataset.found = JSON.stringify(found) })</script>"""

_OPTIONS = """--headless=new --no-sandbox --disable-gpu --hide-scrollbars --enable-logging=stderr
--window-size=1700,950 --dump-dom""".split()


def browsed(folder: Path, page: str, *options: str) -> tuple[list[dict[str, Any]], str]:
    """What a page is in Chromium at both widths, and what the console said."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed: the page is not looked at in a browser")
    (folder / "page.html").write_text(page.replace("</body>", f"{_LOOK}</body>"))
    (folder / "frame.html").write_text(_FRAME)
    command = [chromium, *_OPTIONS, *options, f"--user-data-dir={folder / 'profile'}", str(folder / "frame.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return sorted(json.loads(html.unescape(found[1])), key=lambda one: -one["width"]), "\n".join(said)


@pytest.mark.parametrize(("theme", "paper"), [(1, "rgb(255, 255, 255)"), (0, "rgb(20, 23, 28)")])
def test_a_browser_shows_it_wide_and_narrow_without_an_error(
    page: str, tmp_path: Path, theme: int, paper: str
) -> None:
    looks, console = browsed(tmp_path, page, f"--blink-settings=preferredColorScheme={theme}")
    assert [one["width"] for one in looks] == [1280, 400] and console == ""
    for one in looks:
        assert one["wide"] == one["width"] and one["panels"] > 12 and one["fetched"] == []
        assert one["paper"] == paper and one["label"] >= 11.5  # pixels that a line of text takes


def test_the_look_in_the_browser_can_fail(page: str, tmp_path: Path) -> None:
    bad = "<img src='http://127.0.0.1:9/x.png'><p style='width:1400px;max-width:none'>x</p>"
    bad += "<script>console.error('hm')</script></body>"
    looks, console = browsed(tmp_path, page.replace("</body>", bad))
    assert looks[1]["fetched"] == ["http://127.0.0.1:9/x.png"] and looks[1]["wide"] > 1280 and "hm" in console
