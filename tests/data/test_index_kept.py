"""Indices and the catalogue as they are kept: made once, followed, and made anew where they are damaged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from tars import clips, make_corpus, write_tar

from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.shard_manifest import MANIFEST

pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_index_is_built_once_and_opening_reads_the_catalogue_alone(tmp_path):
    folder = make_corpus(tmp_path / "c", [3, 4])
    first = open_corpus(folder)
    assert (folder / "00001.index.jsonl").exists() and (folder / MANIFEST).exists()
    assert len((folder / "00001.index.jsonl").read_bytes().splitlines()) == 1 + 4, "one line a sample"
    for file in folder.glob("*.index.jsonl"):
        file.unlink()
    again = open_corpus(folder)
    assert not list(folder.glob("*.index.jsonl")), "the counts stand in the catalogue"
    assert again.counts.tolist() == [3, 4] and again.fingerprint == first.fingerprint
    assert again.sample(1, 3) == first.sample(1, 3)


def test_thousands_of_shards_open_fast(tmp_path):
    folder = make_corpus(tmp_path / "c", [2])
    for i in range(1, 3000):
        os.link(folder / "00000.tar", folder / f"{i:05d}.tar")
    open_corpus(folder)
    start = time.thread_time()  # other threads of this process may end what tests before began
    corpus = open_corpus(folder)
    assert time.thread_time() - start < 1.0, "measured: 0.03 s"
    assert len(corpus) == 6000


def test_a_replaced_shard_is_noticed_though_its_size_is_the_same(tmp_path):
    folder = make_corpus(tmp_path / "c", [2])
    before = open_corpus(folder)
    size = (folder / "00000.tar").stat().st_size
    write_tar(folder / "00000.tar", [("new.mp4", b"new video"), ("new.json", b"{}"), ("newer.mp4", b"v")])
    assert (folder / "00000.tar").stat().st_size == size
    after = open_corpus(folder)
    assert [after.sample(0, row).key for row in range(2)] == ["new", "newer"]
    assert after.read(after.sample(0, 0), ["mp4"]) == {"mp4": b"new video"}
    assert before.fingerprint != after.fingerprint


def test_a_shard_replaced_under_a_run_stops_it(tmp_path):
    folder = make_corpus(tmp_path / "c", [3])
    corpus = open_corpus(folder)
    write_tar(folder / "00000.tar", clips(0, 2))
    with pytest.raises(OSError, match="replaced under the run"):
        corpus.sample(0, 0)


def test_a_copy_with_other_times_keeps_its_indices(tmp_path):
    folder = make_corpus(tmp_path / "c", [3])
    corpus = open_corpus(folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copyfile(folder / "00000.index.jsonl", copy / "00000.index.jsonl")
    os.utime(copy / "00000.index.jsonl", (1, 1))
    shutil.copyfile(folder / "00000.tar", copy / "00000.tar")
    moved = open_corpus(copy)
    assert (copy / "00000.index.jsonl").stat().st_mtime == 1, (
        "a tar newer than its index is no reason to build it anew"
    )
    assert moved.fingerprint == corpus.fingerprint


@pytest.mark.parametrize("damage", [b"", b"{", b'{"bytes": 1}\n', b"[]\n", b'{"samples":0}\n'])
def test_half_an_index_or_catalogue_is_built_anew(tmp_path, damage):
    folder = make_corpus(tmp_path / "c", [3])
    whole = open_corpus(folder)
    (folder / "00000.index.jsonl").write_bytes(damage)
    (folder / MANIFEST).write_bytes(damage)
    again = open_corpus(folder)
    assert again.counts.tolist() == [3] and again.sample(0, 2) == whole.sample(0, 2)


LINE_DAMAGE = {
    "no JSON": lambda line: b"{" + line,
    "nested": lambda line: b"[" * 100_000,
    "no key": lambda line: line.replace(b'"key"', b'"kez"'),
    "no member": lambda line: line.replace(b'"mp4"', b'"mp5"'),
    "beyond the tar": lambda line: line.replace(b'"mp4":[', b'"mp4":[9'),
    "a negative offset": lambda line: line.replace(b'"mp4":[', b'"mp4":[-'),
    "a float": lambda line: line.replace(b'"mp4":[', b'"mp4":[0.'),
    "a long number": lambda line: line.replace(b'"mp4":[', b'"mp4":[1' + b"0" * 400),
    "a number": lambda line: b"7",
    "not UTF-8": lambda line: b"\xff" + line,
}


@pytest.mark.parametrize("kept", [True, False], ids=["with its digest", "of an older version"])
@pytest.mark.parametrize("kind", LINE_DAMAGE)
def test_a_damaged_line_of_an_index_is_made_anew_and_said_once(tmp_path, kind, kept, capfd):
    folder = make_corpus(tmp_path / "c", [3])
    whole = open_corpus(folder)
    refs = [whole.sample(0, row) for row in range(3)]
    index = folder / "00000.index.jsonl"
    head, *lines = index.read_bytes().splitlines()
    lines[1] = LINE_DAMAGE[kind](lines[1])
    if not kept:
        head = json.dumps({key: value for key, value in json.loads(head).items() if key != "blake2b"}).encode()
    index.write_bytes(b"\n".join([head, *lines]) + b"\n")
    again = open_corpus(folder)
    assert [again.sample(0, row) for row in range(3)] == refs
    assert [open_corpus(folder).sample(0, row) for row in range(3)] == refs
    said = capfd.readouterr().err
    assert said.count("00000.index.jsonl: damaged (") == 1 and len(said) < 500


def test_an_offset_that_is_another_is_seen(tmp_path):
    folder = make_corpus(tmp_path / "c", [3])
    refs = [open_corpus(folder).sample(0, row) for row in range(3)]
    index = folder / "00000.index.jsonl"
    index.write_bytes(index.read_bytes().replace(b'"mp4":[15', b'"mp4":[14', 1))
    assert [open_corpus(folder).sample(0, row) for row in range(3)] == refs


CATALOGUE_DAMAGE = {
    "a negative count": (b'"samples":3', b'"samples":-3'),
    "another count": (b'"samples":3', b'"samples":4'),
    "a count of a list": (b'"samples":3', b'"samples":[3]'),
    "a reason of a text": (b'"left_out":{}', b'"left_out":{"x":"y"}'),
    "no mark": (b'"mark"', b'"mork"'),
    "nested": (b'"samples":3', b'"samples":' + b"[" * 100_000),
}


@pytest.mark.parametrize("kept", [True, False], ids=["with its digest", "of an older version"])
@pytest.mark.parametrize("kind", CATALOGUE_DAMAGE)
def test_a_damaged_catalogue_is_made_anew_and_said_once(tmp_path, kind, kept, capfd):
    folder = make_corpus(tmp_path / "c", [3])
    whole = open_corpus(folder)
    file = folder / MANIFEST
    content = file.read_bytes()
    if not kept:
        content = json.dumps({k: v for k, v in json.loads(content).items() if k}, separators=(",", ":")).encode()
    file.write_bytes(content.replace(*CATALOGUE_DAMAGE[kind]))
    again = open_corpus(folder)
    if kind == "another count" and not kept:  # only seen when the shard is used: then it is no longer believed
        with pytest.raises(OSError, match="start the run again"):
            again.sample(0, 0)
        again = open_corpus(folder)
    else:
        assert capfd.readouterr().err.count(f"{MANIFEST}: damaged (") == 1
    assert again.counts.tolist() == [3] and again.sample(0, 2) == whole.sample(0, 2)
    open_corpus(folder)
    assert not capfd.readouterr().err


@contextlib.contextmanager
def as_another_user():
    """Root may write anywhere: give that up for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_corpus_keeps_its_index_in_the_cache(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory() as public:
        os.chmod(public, 0o755)
        cache = Path(public) / "cache"
        cache.mkdir()
        os.chmod(cache, 0o777)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        folder = make_corpus(Path(public) / "c", [3, 2])
        os.chmod(folder, 0o555)
        before = sorted(os.listdir(folder))
        with as_another_user():
            corpus = open_corpus(folder)
            assert corpus.sample(1, 1).key == "1_0001"
        assert sorted(os.listdir(folder)) == before
        kept = sorted(path.name.split("-", 1)[1] for path in cache.rglob("*") if path.is_file())
        assert kept == ["00000.index.jsonl", "00001.index.jsonl", MANIFEST]
        with as_another_user():
            assert open_corpus(folder).fingerprint == corpus.fingerprint
            monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "nowhere"))
            with pytest.raises(OSError, match="set XDG_CACHE_HOME"):
                open_corpus(folder)
        os.chmod(folder, 0o755)
