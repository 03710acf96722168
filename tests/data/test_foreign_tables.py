"""Tables of other programs are refused by name, wherever a list goes, with the command that brings them in."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest

from tgm_scale.data.building.annotation_files import files_of, lines_of
from tgm_scale.data.lists.foreign_tables import foreign_table
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.evaluation.labelled import open_labelled

TABLES = {  # what it begins with, what it is called, and what the command reads it with
    "x.parquet": (b"PAR1", "Parquet", "pandas.read_parquet"),
    "X.PARQUET": (b"PAR1", "Parquet", "pandas.read_parquet"),
    "x.feather": (b"ARROW1\0\0", "Feather", "pandas.read_feather"),
    "x.arrow": (b"\xff\xff\xff\xff\0\2\0\0", "an Arrow table", "datasets.Dataset.from_file"),
    "file.arrow": (b"ARROW1\0\0", "Feather", "pandas.read_feather"),
    "x.xlsx": (b"PK\3\4\x14\0", "an Excel table", "pandas.read_excel"),
    "x.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel table", "pandas.read_excel"),
    "called_otherwise.csv": (b"PAR1\x15\4", "Parquet", "pandas.read_parquet"),
    "called_otherwise.jsonl": (b"ARROW1\0\0", "Feather", "pandas.read_feather"),
    "called_otherwise.txt": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel table", "pandas.read_excel"),
    "it's one.parquet": (b"PAR1", "Parquet", "pandas.read_parquet"),
}


def refusals(path: Path) -> list[str]:
    """What training, evaluation and `shards make` say."""
    told = []
    for opened in (open_corpus, open_labelled, lambda spec: list(lines_of(files_of(spec)))):
        with pytest.raises(ValueError) as refused:
            opened(str(path))
        told.append(str(refused.value).removeprefix("--annotations "))
    return told


def calls(message: str) -> tuple[set[str], list[str]]:
    """The names that the command's code calls or reads, and its texts; it must be sound to a shell and to Python."""
    command = message[message.index("python -c") : message.index(" (pip install")]
    python, option, code = shlex.split(command)
    tree = ast.parse(code)
    assert (python, option) == ("python", "-c")
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names, [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_refused_with_the_command_that_reads_it(tmp_path: Path, name: str) -> None:
    head, what, reader = TABLES[name]
    (tmp_path / name).write_bytes(head + b"\x15\0\xff\n" * 9)
    for told in refusals(tmp_path / name):
        assert f"{name}: {what} is not read; make JSON Lines of it: python -c" in told
        names, texts = calls(told)
        assert reader in names and str(tmp_path / name) in texts
        assert str((tmp_path / name).with_suffix(".jsonl")) in texts


def test_a_zip_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"PK\3\4\x14\0\0\0")
    assert all("x.csv: a zip: unpack it" in told for told in refusals(tmp_path / "x.csv"))


def test_folders_and_patterns_of_tables(tmp_path: Path) -> None:
    """As Spark writes one table, as the hub has several, as datasets saves them."""
    for name in ("spark.parquet/part-0.parquet", "hub/data/train-0.parquet", "hub/data/train-1.parquet",
                 "flat/a.parquet", "flat/b.parquet"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"PAR1")
    (tmp_path / "hub" / "README.md").touch()
    for told in refusals(tmp_path / "spark.parquet"):
        assert str(tmp_path / "spark.parquet") in calls(told)[1]
    for spec, found in (("hub", "hub/data/*.parquet"), ("flat", "flat/*.parquet"), ("flat/*.parquet",) * 2):
        for told in refusals(tmp_path / spec):
            names, texts = calls(told)
            assert str(tmp_path / found) in texts and {"glob.glob", "pandas.concat"} <= names
    assert "flat/*.parquet" in refusals(tmp_path / "flat" / "{a,b}.parquet")[0]


@pytest.mark.parametrize("parts", [[], ["test", "train"]])
def test_a_dataset_of_hugging_face_is_told_by_its_files(tmp_path: Path, parts: list[str]) -> None:
    for part in parts or ["."]:
        (tmp_path / "d" / part).mkdir(parents=True)
        for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"):
            (tmp_path / "d" / part / name).write_bytes(b"{}")
    if parts:
        (tmp_path / "d" / "dataset_dict.json").write_text("{}")
    for told in refusals(tmp_path / "d"):
        assert "a dataset of Hugging Face" in told and ("in parts (test, train)" in told) == bool(parts)
        names, texts = calls(told)
        assert "datasets.load_from_disk" in names and str(tmp_path / "d" / (parts or [""])[0]) in texts


def test_the_command_writes_over_nobodys_file(tmp_path: Path) -> None:
    for name, others in (("rows.parquet", ["rows.jsonl", "rows_.jsonl"]), ("named.jsonl", [])):
        (tmp_path / name).write_bytes(b"PAR1zzzz")
        for other in others:
            (tmp_path / other).write_text("{}")
        said = foreign_table(str(tmp_path / name))
        assert (
            said is not None
            and f"{name.partition('.')[0]}{'_' * max(1, len(others))}.jsonl" in said.split("to_json")[1]
        )
