"""A full disk is told with its folder and the room there is, whichever library writes; nothing is left of the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import small_disk
from made_weights import made

from tgm_scale import cli
from tgm_scale.conversion.convert import TARGETS, convert
from tgm_scale.runtime.command import FAILED
from tgm_scale.runtime.files import naming, replace_file


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "full", 16) as disk:
        yield disk


@pytest.mark.parametrize("target", TARGETS)
def test_a_conversion_says_where_there_is_no_room(
    target: str, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    kind = "classifier" if target == "videomae-finetune" else "pretraining"
    convert(made(kind), tmp_path / "in", "safetensors")
    assert cli.main(["convert", str(tmp_path / "in"), str(full / "out"), "--to", target]) == FAILED
    said = capsys.readouterr().err
    assert re.search(rf"no space left in {full}: [\d,]+ bytes free", said) and "Traceback" not in said
    assert not list(full.iterdir())


def _replaced(file: Path) -> None:
    replace_file(file, "x" * 100_000)


def _named(file: Path) -> None:
    with naming(file):
        file.write_text("x" * 100_000)


@pytest.mark.parametrize("write", [_replaced, _named])
def test_a_text_file_is_named(write: Callable[[Path], None], full: Path) -> None:
    file = full / "page.html"
    with pytest.raises(OSError, match=re.escape(str(file))):
        write(file)
    assert write is _named or not list(full.iterdir())
