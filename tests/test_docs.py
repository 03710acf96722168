"""What pages say of the code is so: the reference is as written, links lead somewhere, quoted messages exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tgm_scale

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tgm_scale/**/*.md"), *ROOT.glob(".github/**/*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    found = []
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def test_the_reference_of_the_configuration_is_what_its_tool_writes() -> None:
    command = [sys.executable, str(ROOT / "tools" / "write_reference.py"), "--output", "-"]
    written = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    page = (ROOT / "docs" / "CONFIGURATION.md").read_text(encoding="utf-8")
    assert page == written, "run `python tools/write_reference.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert not dead_links(page)


def test_every_page_that_the_source_names_is_there() -> None:
    named = set()
    for folder in ("tgm_scale", "tools", "tests", "configs", "slurm", "containers", ".github"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".yaml", ".yml", ".sh", ".md", ".def") or file.name == "Dockerfile":
                named |= set(re.findall(r"\bdocs/[\w/-]+\.(?:md|png|gif)\b", file.read_text(encoding="utf-8")))
    assert len(named) > 8
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n[a](page.md#a-page) [b](gone.md) [c](#nothing) `[d](code.md)` [e](https://x.org/y)\n")
    assert dead_links(page) == ["gone.md", "#nothing"]


def recipe(target: str) -> str:
    """The commands of a target of the Makefile, its variables filled in."""
    command = ["make", "--no-print-directory", "-n", "-o", ".venv/.installed", target]
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }  # of `make test`
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True, timeout=100).stdout


def test_make_quick_has_a_test_of_every_folder() -> None:
    named = {
        word.partition("::")[0].strip('"') for word in recipe("quick").split() if word.strip('"').startswith("tests/")
    }
    assert not [name for name in named if not (ROOT / name).exists()]
    folders = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")} - {"gpu", "slurm", "device"}
    assert {"data", "training"} <= folders
    assert not {name for name in folders if not any(one.startswith(f"tests/{name}") for one in named)}
    assert "tests/test_config.py" in named


def test_the_hooks_before_a_commit_are_what_make_lint_runs() -> None:
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]]
    assert local["repo"] == "local" and {hook["language"] for hook in local["hooks"]} == {"system"}
    assert hooks == [line.removesuffix(" .") for line in recipe("lint").splitlines()]


def test_what_is_cited_is_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == tgm_scale.__version__ and "2408.00759" in cited["references"][0]["url"]
    assert f"[Unreleased]: {tgm_scale.__version__}" in (ROOT / "CHANGELOG.md").read_text()


OTHERS = {  # what other programs print
    "operator torchvision::nms does not exist",
    "Invalid GRES specification",
}


def said_in_source() -> list[str]:
    """Every text in the code, the values in it as `{}`, and the shell scripts line by line."""
    found = []
    for file in [*ROOT.glob("tgm_scale/**/*.py"), *ROOT.glob("tools/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    for file in [*ROOT.glob("slurm/**/*.sh"), ROOT / "Makefile"]:
        found += file.read_text().splitlines()
    return found


def quoted_messages() -> list[str]:
    """Those in the first column of the tables."""
    page = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text()
    rows = [row.split(" | ")[0] for row in page.partition("## Installing")[2].splitlines() if row.startswith("| ")]
    return [quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row)]


def test_every_message_of_troubleshooting_is_in_the_source() -> None:
    source, quoted = said_in_source(), quoted_messages()
    assert len(quoted) > 60
    pieces = {message: [piece for piece in message.split("...") if piece.strip()] for message in quoted}
    lost = [one for one in pieces if not any(all(piece in text for piece in pieces[one]) for text in source)]
    assert set(lost) == OTHERS


def test_every_exit_code_is_in_the_table() -> None:
    codes = {130}
    for file in ROOT.glob("tgm_scale/**/*.py"):
        codes |= {int(code) for code in re.findall(r"(?im)(?:exit_code|^BAD_NODE) = (\d+)\b", file.read_text())}
    page = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text()
    assert not [code for code in codes if f"| {code} |" not in page], codes
