"""Writing of shards, read back by webdataset itself."""

from __future__ import annotations

import io
import json
import os
import zlib

import numpy as np
import pytest
import webdataset as wds

from tgm_scale.data.shards.index import ShardIndex
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.shard_index import index_path
from tgm_scale.data.shards.tars import ShardWriter

MAP = np.arange(12, dtype=np.float16).reshape(3, 4)


def write(folder, count, clips_per_shard=3, first=0):
    with ShardWriter(folder, clips_per_shard, first) as writer:
        for i in range(count):
            members = {
                "mp4": f"video {i}".encode(),
                "json": {"captions": [f"caf\u00e9 {i}"]},
                "tgm.npy": MAP + i,
                "txt": "t",
            }
            writer.write(f"-clip_{i}", members)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_webdataset_reads_what_is_written(tmp_path):
    write(tmp_path, 7)
    shards = [str(tmp_path / f"0000{i}.tar") for i in range(3)]
    samples = list(wds.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"-clip_{i}" for i in range(7)]
    for i, sample in enumerate(samples):
        assert sample["mp4"] == f"video {i}".encode() and sample["txt"] == b"t"
        assert json.loads(sample["json"]) == {"captions": [f"caf\u00e9 {i}"]}
        array = np.lib.format.read_array(io.BytesIO(sample["tgm.npy"]), allow_pickle=False)
        assert array.dtype == np.float16 and (array == MAP + i).all()


def test_the_index_is_that_of_a_scan_with_sums_and_the_corpus_opens(tmp_path):
    write(tmp_path, 7)
    for i in range(3):
        shard = tmp_path / f"0000{i}.tar"
        index = ShardIndex.parse(str(shard), (tmp_path / index_path(str(shard))).read_bytes())
        scanned = ShardIndex.scan(str(shard))
        assert index.has_sums and not scanned.has_sums and index.has_lines_of(scanned)
        for row in range(len(index)):
            ref = index.sample(row)
            sums = {name: zlib.crc32(shard.read_bytes()[at : at + size]) for name, (at, size) in ref.members.items()}
            assert ref.sums == sums and scanned.sample(row).members == ref.members
    corpus = open_corpus(tmp_path)
    assert corpus.counts.tolist() == [3, 3, 1] and not corpus.left_out
    assert corpus.read(corpus.sample(2, 0), ["mp4"]) == {"mp4": b"video 6"}


def test_the_same_samples_give_the_same_bytes(tmp_path):
    write(tmp_path / "a", 7)
    write(tmp_path / "b", 7)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert sorted(files(tmp_path / "a")) == sorted(
        f"0000{i}.{end}" for i in range(3) for end in ("tar", "index.jsonl")
    )


def test_a_shard_can_be_written_alone(tmp_path):
    write(tmp_path / "all", 6)
    with ShardWriter(tmp_path / "one", 3, first=1) as writer:
        for i in range(3, 6):
            members = {
                "mp4": f"video {i}".encode(),
                "json": {"captions": [f"caf\u00e9 {i}"]},
                "tgm.npy": MAP + i,
                "txt": "t",
            }
            writer.write(f"-clip_{i}", members)
    assert files(tmp_path / "one").items() <= files(tmp_path / "all").items()


def test_an_error_leaves_whole_shards_only(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, 2) as writer:
        for i in range(3):
            writer.write(f"{i}", {"mp4": b"v"})
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["00000.index.jsonl", "00000.tar"]


def test_nothing_written_makes_no_shard(tmp_path):
    write(tmp_path, 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("key", "members", "complaint"),
    [
        ("a.b", {"mp4": b"v"}, "has no dot"),
        ("", {"mp4": b"v"}, "not empty"),
        ("a/", {"mp4": b"v"}, "not empty"),
        ("a\x1bb", {"mp4": b"v"}, "control character"),
        ("twice", {"mp4": b"v"}, "written twice"),
        ("a", {"pt": object()}, "member 'pt': a object cannot be written"),
        ("a", {"npy": np.array([object()])}, "Object arrays cannot be saved"),
    ],
)
def test_what_cannot_be_written(tmp_path, key, members, complaint):
    with ShardWriter(tmp_path) as writer:
        writer.write("twice", {"mp4": b"v"})
        with pytest.raises(ValueError, match=complaint):
            writer.write(key, members)
    assert len(open_corpus(tmp_path)) == 1
