"""Indices, catalogues and range reads, against tarfile's own reading of the same shards."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import clips, make_corpus, write_tar

from tgm_scale.data.access import storage
from tgm_scale.data.shards.index import ShardIndex
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.shard_manifest import MANIFEST

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_where_tarfile_finds_them(tmp_path, tar_format):
    long = "folder/" + "k" * 90
    members = [*clips(0, 3), (f"{long}.webm", b"long name"), (f"{long}.tgm.npy", b"scores")]
    if tar_format != tarfile.USTAR_FORMAT:
        members.append(("caf\u00e9" * 40 + ".mkv", b"very long, not ASCII"))
    path = write_tar(tmp_path / "00000.tar", members, tar_format)
    corpus = open_corpus(path)
    with tarfile.open(path) as tar:
        truth = {member.name: tar.extractfile(member.name).read() for member in tar}  # type: ignore[union-attr]
    read = {}
    for row in range(len(corpus)):
        ref = corpus.sample(0, row)
        for extension, data in corpus.read(ref, list(ref.members)).items():
            read[f"{ref.key}.{extension}"] = data
    assert read == truth == dict(members)


def test_a_sample_is_all_that_shares_what_stands_before_the_first_dot(tmp_path):
    """As webdataset has it (its issue 237): also where the members of a sample do not lie together."""
    names = ["-a.mp4", "_b.MP4", "__c__.x.mov", "d.e.f.avi", "g/h.mkv", "g/h.tgm.npy", "-a.json", "i.webm"]
    corpus = open_corpus(write_tar(tmp_path / "0.tar", [(name, name.encode()) for name in names]))
    found = {ref.key: set(ref.members) for ref in (corpus.sample(0, row) for row in range(len(corpus)))}
    assert found == {"-a": {"mp4", "json"}, "_b": {"mp4"}, "g/h": {"mkv", "tgm.npy"}, "i": {"webm"}}
    assert corpus.left_out == {"key_with_dot": 2}  # "x.mov" and "e.f.avi" are no videos
    assert corpus.sample(0, 1).video == "mp4" and corpus.sample(0, 2).name == "0/g/h"


def test_a_failed_download_is_left_out_and_counted(tmp_path):
    """video2dataset leaves the text and the json of a video that it could not fetch."""
    members = [("0001.txt", b"a cat"), ("0001.json", b"{}"), ("0002.mp4", b"video"), ("0002.txt", b"a dog")]
    corpus = open_corpus(write_tar(tmp_path / "00000.tar", members))
    assert len(corpus) == 1 and corpus.sample(0, 0).key == "0002"
    (problem,) = corpus.problems(0)
    assert (problem.key, problem.reason, problem.detail) == ("0001", "no_video", "has json, txt")


def test_members_that_are_no_plain_files_are_nothing(tmp_path):
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, target in (("a.mp4", tarfile.SYMTYPE, "/etc/passwd"), ("b.mp4", tarfile.LNKTYPE, "c.mp4")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        for name in ("../../c.mp4", "/d.mp4", ".mp4", "._c.mp4", "noextension", "folder."):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
    corpus = open_corpus(str(path))
    assert [corpus.sample(0, row).key for row in range(len(corpus))] == ["../../c", "/d"]
    assert corpus.read(corpus.sample(0, 0), ["mp4"]) == {"mp4": b"data"}


def test_of_a_double_member_the_first_counts(tmp_path):
    corpus = open_corpus(write_tar(tmp_path / "0.tar", [("a.mp4", b"first"), ("a.mp4", b"second")]))
    assert corpus.read(corpus.sample(0, 0), ["mp4"]) == {"mp4": b"first"}
    assert corpus.left_out == {"duplicate_member": 1}


def test_tars_one_behind_the_other_are_read_on(tmp_path):
    """`cat a.tar b.tar`: tar ends at the first end mark."""
    both = [write_tar(tmp_path / f"{n}.tar", clips(n, 3)) for n in range(2)]
    path = tmp_path / "both.tar"
    path.write_bytes(b"".join(Path(one).read_bytes() for one in both))
    corpus = open_corpus(str(path))
    found = {ref.key: corpus.read(ref, ["mp4"])["mp4"] for ref in (corpus.sample(0, row) for row in range(6))}
    wanted = {name[:-4]: data for n in range(2) for name, data in clips(n, 3) if name.endswith(".mp4")}
    assert found == wanted and not corpus.left_out
    path.write_bytes(path.read_bytes() + b"what is no tar" * 100)
    (tmp_path / "both.index.jsonl").unlink()
    corpus = open_corpus(str(path))
    assert len(corpus) == 6 and corpus.left_out == {"shard_cut": 1}


def test_keys_with_dots_are_named_with_the_first_and_what_to_do(tmp_path):
    members = [(f"id_00:00:0{n}.250.mp4", b"video") for n in range(3)] + [("whole.mp4", b"video")]
    corpus = open_corpus(write_tar(tmp_path / "0.tar", members))
    assert [ref.name for ref in corpus.refs] == ["0/whole"] and corpus.left_out == {"key_with_dot": 3}
    first = next(corpus.all_problems())
    assert first.key == "0/id_00:00:00.250.mp4" and "a key ends at the first dot" in first.detail


MEMBERS = list(clips(0, 6))
WHOLE = io.BytesIO()
with tarfile.open(fileobj=WHOLE, mode="w") as _tar:
    for _name, _data in MEMBERS:
        _info = tarfile.TarInfo(_name)
        _info.size = len(_data)
        _tar.addfile(_info, io.BytesIO(_data))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(WHOLE.getvalue())))
def test_a_shard_cut_anywhere_keeps_what_is_whole(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "00000.tar"
    path.write_bytes(WHOLE.getvalue()[:cut])
    index = ShardIndex.scan(str(path))
    ends, end = {}, 0  # of each sample's last byte
    for name, data in MEMBERS:
        end += 512 + len(data)
        ends[name.split(".")[0]] = end
        end += -len(data) % 512
    whole = [key for key, last in ends.items() if last <= cut]
    assert [index.sample(row).key for row in range(len(index))] == whole
    data = path.read_bytes()
    for row in range(len(index)):
        ref = index.sample(row)
        for extension, (offset, size) in ref.members.items():
            assert data[offset : offset + size] == dict(MEMBERS)[f"{ref.key}.{extension}"]
    reasons = {problem.reason for problem in index.problems}
    if len(whole) < 6:
        assert reasons <= {"shard_cut", "shard_unreadable", "no_video"} and reasons - {"no_video"}


def test_a_broken_header_is_not_taken_for_the_end(tmp_path):
    data = bytearray(WHOLE.getvalue())
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        third = tar.getmembers()[4].offset
    data[third : third + 512] = b"\xff" * 512
    path = tmp_path / "00000.tar"
    path.write_bytes(data)
    index = ShardIndex.scan(str(path))
    assert len(index) == 2
    assert [(problem.reason, problem.detail) for problem in index.problems] == [
        ("shard_cut", f"no member header at byte {third}")
    ]


PACKED = {"gzip": b"\x1f\x8b", "Zstandard": b"\x28\xb5\x2f\xfd", "bzip2": b"BZh9", "xz": b"\xfd7zXZ", "zip": b"PK\3\4"}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_shard_is_told_how_it_is_unpacked(tmp_path, name):
    make_corpus(tmp_path / "c", [3, 2])
    (tmp_path / "c" / "00000.tar").write_bytes(PACKED[name] + b"x" * 2000)
    corpus = open_corpus(tmp_path / "c")
    (problem,) = corpus.all_problems()
    assert len(corpus) == 2 and problem.reason == "shard_unreadable"
    assert f"compressed ({name}): unpack it first, such as with" in problem.detail


@pytest.mark.parametrize("content", [b"", b"this is no tar", b"\0" * 10240, b"\x1f\x8b" + b"x" * 2000])
def test_a_bad_shard_among_good_ones(tmp_path, content):
    make_corpus(tmp_path / "c", [3, 2])
    (tmp_path / "c" / "00000.tar").write_bytes(content)
    corpus = open_corpus(tmp_path / "c")
    assert [Path(shard).name for shard in corpus.shards] == ["00001.tar"] and len(corpus) == 2
    assert corpus.left_out == {"shard_unreadable" if content.strip(b"\0") or not content else "shard_empty": 1}


def header(name, size, kind=b"0"):
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(block[:148] + b" " * 8 + block[156:])[0]  # type: ignore
    return bytes(block)


def pax(records):
    """A pax header of these bytes."""
    return header("pax", len(records), tarfile.XHDTYPE) + records.ljust(-(-len(records) // 512) * 512, b"\0")


BROKEN_HEADERS = {
    "negative": header("bad.mp4", -512),
    "far back": header("bad.mp4", -(10**15)),
    "a terabyte": header("bad.mp4", 10**12),
    "a name of a terabyte": header("bad.mp4", 10**12, b"L"),
    "a pax header of a terabyte": header("bad.mp4", 10**12, tarfile.XHDTYPE),
    "pax: negative": pax(b"13 size=-9999\n") + header("bad.mp4", 4),
    "pax: a digit too much": pax(b"5" * 5000 + b" size=4\n") + header("bad.mp4", 4),
    "pax: no length": pax(b"0 size=4\n") + header("bad.mp4", 4),
    "pax: sparse map": pax(b"25 GNU.sparse.map=1,2,x\n\n") + header("bad.mp4", 4),
    "pax: sparse of its own": pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + header("bad.mp4", 4),
    "a chain": pax(b"9 a=bcde\n") * 3000 + header("bad.mp4", 4),
    "a chain of names": (header("x", 4, b"L") + b"name".ljust(512, b"\0")) * 3000,
}


@pytest.mark.parametrize("broken", BROKEN_HEADERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_shard_with_a_broken_header_is_cut_there(tmp_path, broken, first):
    """And no other shard is: one bad one does not stop a run."""
    make_corpus(tmp_path / "c", [3, 2])
    good = (tmp_path / "c" / "00000.tar").read_bytes()
    with tarfile.open(tmp_path / "c" / "00000.tar") as tar:
        last = tar.getmembers()[-1]
        end = last.offset_data + (last.size + 511) // 512 * 512
    start = b"" if first else good[:end]
    (tmp_path / "c" / "00000.tar").write_bytes(start + BROKEN_HEADERS[broken] + bytes(10240))
    corpus = open_corpus(tmp_path / "c")
    assert corpus.counts.tolist() == ([2] if first else [3, 2])
    assert corpus.left_out.keys() <= {"shard_cut", "shard_unreadable"} and corpus.left_out
    for shard, count in enumerate(corpus.counts.tolist()):
        for row in range(count):
            ref = corpus.sample(shard, row)
            assert corpus.read(ref, ["mp4"])["mp4"].startswith(b"video")


def test_what_is_no_error_of_the_storage_is_not_tried_again():
    tried = []

    def wrong():
        tried.append(1)
        raise ValueError("not a number")

    with pytest.raises(ValueError, match="not a number"):
        storage.retrying(wrong, "x.tar")
    assert len(tried) == 1


def test_a_corpus_pickles_and_threads_share_it(tmp_path):
    """More shards than descriptors and indices are kept for, read at random from eight threads."""
    corpus = open_corpus(make_corpus(tmp_path / "c", [3] * 90))
    copy = pickle.loads(pickle.dumps(corpus))
    places = [(i * 37 % 90, i % 3) for i in range(600)]

    def read(place):
        return copy.read(copy.sample(*place), ["mp4", "json", "txt"])

    with ThreadPoolExecutor(8) as pool:
        for (shard, row), members in zip(places, pool.map(read, places)):
            assert members["mp4"] == f"video {shard} {row} ".encode() * (50 + row)
            assert json.loads(members["json"]) == {"caption": f"caption {shard} {row}"} and "txt" not in members
    assert len(os.listdir("/proc/self/fd")) < 90


def test_members_far_apart_are_read_apart(tmp_path):
    members = [("a.json", b"{}"), ("b.mp4", b"x" * 400_000), ("a.mp4", b"video"), ("a.npy", b"never asked for")]
    corpus = open_corpus(write_tar(tmp_path / "0.tar", members))
    assert corpus.sample(0, 0).key == "a"
    assert corpus.read(corpus.sample(0, 0), ["mp4", "json"]) == {"mp4": b"video", "json": b"{}"}
    assert corpus.read(corpus.sample(0, 0), ["webm"]) == {}


def test_a_local_shard_that_became_shorter_stops(tmp_path):
    corpus = open_corpus(make_corpus(tmp_path / "c", [3]))
    ref = corpus.sample(0, 2)
    os.truncate(corpus.shards[0], 1000)
    with pytest.raises(OSError, match="replaced while in use"):
        corpus.read(ref, ["mp4"])
    os.unlink(corpus.shards[0])
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(corpus)).read(ref, ["mp4"])


def test_a_shard_that_is_gone_is_named(tmp_path):
    """By the catalogue or by its index, whichever is left: as after a copy that was cut short."""
    for left in ("the index", "the catalogue"):
        folder = make_corpus(tmp_path / left, [3, 2, 4])
        assert not open_corpus(folder).left_out
        (folder / "00001.tar").unlink()
        (folder / (MANIFEST if left == "the index" else "00001.index.jsonl")).unlink()
        for _ in range(2):
            corpus = open_corpus(folder)
            [problem] = corpus.all_problems()
            assert (problem.key, problem.reason) == ("00001", "shard_missing") and "00001.tar" in problem.detail
            assert corpus.left_out == {"shard_missing": 1} and len(corpus) == 7 and corpus.lost == 3.5
        assert not open_corpus([str(folder / "00000.tar")]).left_out, "a list names what it wants"


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a link to itself"])
def test_what_is_no_file_is_made_anew_or_named(tmp_path, kind):
    """To open a pipe would be to wait for its writer for ever."""
    put = {"a folder": os.mkdir, "a pipe": os.mkfifo, "a link to itself": lambda path: os.symlink(path.name, path)}[
        kind
    ]
    folder = make_corpus(tmp_path / "shards", [3, 2])
    whole = open_corpus(folder).fingerprint
    for name in (MANIFEST, "00000.index.jsonl"):
        (folder / name).unlink()
        put(folder / name)
        assert open_corpus(folder).fingerprint == whole
    (folder / "00001.tar").unlink()
    put(folder / "00001.tar")
    with pytest.raises((ValueError, OSError), match=r"00001\.tar"):
        open_corpus(folder)


def test_a_size_beyond_what_can_be_sought_is_no_fault_of_the_storage(tmp_path):
    """It would be waited for: a seek to there is answered as one on a failing disk."""
    folder = make_corpus(tmp_path / "shards", [3, 2])
    data = bytearray((folder / "00001.tar").read_bytes())
    data[124:136] = b"\x80" + bytes(3) + b"\x7f" * 8
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    (folder / "00001.tar").write_bytes(data)
    corpus = open_corpus(folder, patience=0)
    assert len(corpus) == 3 and set(corpus.left_out) <= {"shard_cut", "shard_unreadable"}
