"""A page in headless Chromium: at both widths, and what the console said."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_LOOK = """<script>addEventListener("load", () => parent.postMessage({
  width: innerWidth, wide: document.documentElement.scrollWidth, panels: document.querySelectorAll("svg").length,
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color, label: Math.min(...[...document.querySelectorAll("svg text")].map(
    text => text.getBoundingClientRect().height)),
  pictures: [...document.images].map(one => one.naturalWidth),
  fetched: performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:"))
  }, "*"))</script>"""
_FRAME = """<!doctype html><iframe width=1280 height=900 src=page.html></iframe><iframe width=400 height=900
src=page.html></iframe><script>const found = []; addEventListener("message", told => { found.push(told.data);
document.documentElement.dataset.found = JSON.stringify(found) })</script>"""

_OPTIONS = """--headless=new --no-sandbox --disable-gpu --hide-scrollbars --enable-logging=stderr
--window-size=1700,950 --dump-dom""".split()


THEMES = {1: "rgb(255, 255, 255)", 0: "rgb(20, 23, 28)"}  # light and dark, by Chromium's setting: what the paper is


def browsed(folder: Path, page: str, theme: int = 1) -> tuple[list[dict[str, Any]], str]:
    """What a page is in Chromium at both widths, and what the console said."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed: the page is not looked at in a browser")
    (folder / "page.html").write_text(page.replace("</body>", f"{_LOOK}</body>"))
    (folder / "frame.html").write_text(_FRAME)
    own = [f"--blink-settings=preferredColorScheme={theme}", f"--user-data-dir={folder / 'profile'}"]
    command = [chromium, *_OPTIONS, *own, str(folder / "frame.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return sorted(json.loads(html.unescape(found[1])), key=lambda one: -one["width"]), "\n".join(said)
