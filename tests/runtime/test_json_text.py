"""JSON from outside: every kind of damage is one kind of error."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tgm_scale.runtime.outside.json_text import bounded, json_file, json_lines, json_object, json_of

DAMAGED = {
    "nested": b"[" * 100_000,
    "nested and closed": b"[" * 900 + b"]" * 900,
    "nested objects": b'{"a":' * 500 + b"1" + b"}" * 500,
    "not UTF-8": b'{"a": "\xff"}',
    "cut": b'{"a": [1, 2',
    "empty": b"",
    "zeros": b"\0" * 64,
    "more behind it": b"{} {}",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_a_value_error(kind: str) -> None:
    for finite in (False, True):
        with pytest.raises(ValueError):
            json_of(DAMAGED[kind], finite=finite)


@pytest.mark.parametrize(
    "word", ["NaN", "-Infinity", "1e999", "[1, NaN]", "1" + "0" * 400, "-" + "1" * 5000], ids=range(6)
)
def test_numbers_that_are_none_are_refused_where_all_are_to_be_finite(word: str) -> None:
    float(next(iter(np.ravel(json_of(word)))))  # no OverflowError
    with pytest.raises(ValueError):
        json_of(word, finite=True)


def test_what_is_json_is_read_as_json_reads_it() -> None:
    tree = {"a": [1, -2, 10**300, 1.5, None, True, "ü\ud800"], "b": [[[{"c": {}}]]] * 100}
    for text in (json.dumps(tree), json.dumps(tree).encode(), json.dumps(tree).encode("utf-16")):
        assert json_of(text) == json_of(text, finite=True) == tree


def test_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json: damaged: not valid JSON: brackets"):
        json_file(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json: wanted a JSON object, found list"):
        json_object(file)
    file.write_bytes(b'{"a": 1}\n[')
    with pytest.raises(ValueError, match=r"a\.json: line 2 is damaged"):
        json_lines(file)
    with pytest.raises(ValueError, match="more than 1 bytes"):
        bounded(file, 1)


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """Where a process may ask for little more, as under RLIMIT_DATA, a heartbeat could else not be read."""
    file = tmp_path / "a.json"
    file.write_text("[1]")
    tracemalloc.start()
    assert bounded(file) == b"[1]"
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_what_comes_through_a_pipe_is_read_whole() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x" * 9000)
    os.close(writer)
    assert bounded(Path(f"/dev/fd/{reader}")) == b"x" * 9000
    os.close(reader)
