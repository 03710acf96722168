"""docs/DATA.md says what the code does: its table names tests that are there, and every reason has a line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "DATA.md").read_text()
NOTES = (ROOT / "docs" / "lab-notes" / "inputs.md").read_text()
PLACES = {"CutError": 0, "DecodeError": 0, "_Unclear": 0, "Problem": 1}  # of the reason among the arguments
ELSEWHERE = {"bad_truth", "no_truth"}  # of `masks evaluate`: docs/EVALUATION.md


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_row_of_the_table_names_a_test_that_is_there() -> None:
    table = PAGE[PAGE.index("| given | what happens | test |") :].partition("\n\n")[0].splitlines()[2:]
    assert len(table) > 25
    for row in table:
        named = re.search(r"`(test_\w+)::(test_\w+)` \|$", row)
        assert named, row
        [file] = [*ROOT.glob(f"tests/data/{named[1]}.py"), *ROOT.glob(f"tests/evaluation/{named[1]}.py")]
        assert named[2] in functions(file), row


@pytest.mark.parametrize("page", ["damage", "figures"])
def test_what_is_said_to_be_held_is_held_by_a_test_that_is_there(page: str) -> None:
    rows = [row for row in (ROOT / "docs" / "lab-notes" / f"{page}.md").read_text().splitlines() if "::" in row]
    named = [re.search(r"`([\w/.]+)::(test_\w+)` \|$", row) for row in rows if row.startswith("|")]
    assert len(named) >= 20
    for row, found in zip(rows[-len(named) :], named):
        assert found and found[2] in functions(ROOT / "tests" / found[1]), row


def test_every_row_of_the_notes_names_tests_that_are_there() -> None:
    rows = [row for row in NOTES.splitlines() if row.startswith("| ") and not row.startswith("| input |")]
    assert len(rows) > 50
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for file, name in named:
            assert name in functions(ROOT / "tests" / file), row


def test_every_reason_has_a_line() -> None:
    """Of what is left out, skipped, or not made."""
    reasons = set()
    for file in ROOT.glob("tgm_scale/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and (place := PLACES.get(ast.unparse(node.func).rpartition(".")[2])) is not None
            ):
                reasons |= {a.value for a in node.args[place : place + 1] if isinstance(a, ast.Constant)}
    assert {"missing_video", "damaged", "span_outside", "shard_cut"} <= reasons
    assert not {reason for reason in reasons - ELSEWHERE if f"`{reason}`" not in PAGE}
