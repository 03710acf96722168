"""What `data.shards` may be, and what a mistaken one is told."""

from __future__ import annotations

from functools import partial

import fsspec
import pytest
from tars import make_corpus, write_tar

from tgm_scale.data.access import shard_specs
from tgm_scale.data.shards.opening import open_corpus


def test_specs(tmp_path):
    folder = make_corpus(tmp_path / "c", [1, 1, 1])
    (folder / "notes.txt").write_text("not a shard")
    (folder / "00003.tar.partial").write_text("not yet a shard")
    a, b, c = (str(folder / f"0000{i}.tar") for i in range(3))
    assert open_corpus(folder).shards == open_corpus(str(folder)).shards == [a, b, c]
    assert open_corpus(f"{folder}/*1.tar").shards == [b]
    assert open_corpus(f"{folder}/{{00001..00002}}.tar").shards == [b, c]
    assert open_corpus([c, a]).shards == [c, a], "a list keeps its order"
    assert open_corpus(folder).name == "c" and open_corpus(folder, name="other").name == "other"


@pytest.mark.parametrize(
    ("end", "remedy"),
    [("tar.gz", "gunzip"), ("tgz", "gunzip"), ("tar.zst", "unzstd"), ("tar.xz", "unxz"), ("tar.bz2", "bunzip2")],
)
def test_compressed_tars_are_named_alone_and_among_others(tmp_path, end, remedy):
    """Among others they would be left out; those that were unpacked beside are copies."""
    alone, folder = tmp_path / "alone", make_corpus(tmp_path / "c", [1, 1])
    alone.mkdir()
    for place in (alone, folder):
        (place / f"00001.{end}").write_bytes(b"packed")
    assert len(open_corpus(folder)) == len(open_corpus(f"{folder}/*")) == 2
    (folder / f"00002.{end}").write_bytes(b"packed")
    wanted = rf"holds compressed tars \(0000[12].{end}\): .* such as with {remedy}$"
    fsspec.filesystem("memory").pipe({f"/{end}/00001.tar": b"", f"/{end}/00002.{end}": b""})
    for spec in (alone, alone / f"00001.{end}", f"{alone}/*.{end}", folder, f"{folder}/*", f"memory://{end}"):
        with pytest.raises(ValueError, match=wanted):
            open_corpus(spec)
    assert len(open_corpus(f"{folder}/*.tar")) == 2


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("{folder}/empty", r"is an empty folder: name one that holds shards \(\*.tar\) or videos"),
        ("{folder}/nowhere", "no shards"),
        ("{folder}/c/{{00000..00009}}.tar", "00003.tar"),
        (["{folder}/c/00000.tar", "{folder}/c/*.tar"], "named twice"),
        (["{folder}/c", "{folder}/a.csv"], "a.csv': of places named in brackets each holds shards. Name a list"),
        (["{folder}/a.csv"], "a.csv': of places named in brackets each holds shards. Name a list"),
        ([], "list of shards is empty"),
        ("pipe:cat {folder}/c/00000.tar", "asks for a shell command"),
        ("ssh://host/00000.tar", "protocol 'ssh' is not one of"),
        (
            "{folder}/captions",
            r"none of its 1 shards holds a usable sample \(1 no_video; the first: 0/a: has txt\).*mp4",
        ),
    ],
)
def test_a_mistaken_spec_says_what_was_wanted(tmp_path, spec, complaint):
    make_corpus(tmp_path / "c", [1, 1, 1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "captions").mkdir()
    write_tar(tmp_path / "captions" / "0.tar", [("a.txt", b"a cat")])
    (tmp_path / "a.csv").write_text("file,label\n")
    fill = partial(str.format, folder=tmp_path)
    with pytest.raises(ValueError, match=complaint):
        open_corpus([part.format(folder=tmp_path) for part in spec] if isinstance(spec, list) else fill(spec))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://***@host/00000.tar", "give the whole address again"),
        ("https://host/00000.tar?sig=***", "give the whole address again"),
        ("https://host/*.tar?sig=a", "name its shards, by braces"),
        ("https://host/folder/?sig=a", "name its shards, by braces"),
    ],
)
def test_addresses_that_cannot_be_listed_say_so(address, words):
    with pytest.raises(ValueError, match=words):
        shard_specs.expand(address)


def test_brackets_of_a_host_are_no_pattern():
    assert shard_specs.expand("http://[::1]:9/{00000..00001}.tar") == [f"http://[::1]:9/0000{n}.tar" for n in (0, 1)]
