"""Folders of videos: what a list's names find in them, and what stands for shards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tgm_scale.contracts import Problem
from tgm_scale.data.access.addresses import video_extension
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.video_files import VideoFolder, walk
from tgm_scale.data.shards.video_list import VideoListCorpus
from tgm_scale.evaluation.labelled import open_labelled


def test_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "v/w").mkdir(parents=True)
    (tmp_path / "v/w/a.mp4").touch()
    for link in ("v/again", "v/w/up"):
        (tmp_path / link).symlink_to(tmp_path)
    for link in ("self", "v/self.mp4", "self.mp4"):
        (tmp_path / link).symlink_to(tmp_path / link)
    assert [names for _, names in walk(str(tmp_path)) if names] == [["a.mp4"]]
    assert VideoFolder(str(tmp_path)).find(["a"]).places == {"a": str(tmp_path / "v/w/a.mp4")}


def test_what_cannot_be_read_or_is_no_video_is_named(tmp_path: Path) -> None:
    """A link to itself, names that no file system takes, other endings, and URLs, of which a query is no part."""
    (tmp_path / "self").symlink_to(tmp_path / "self")
    for name in ("a.mp4", "b.m4s", "deep/c.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    wanted = {
        "a": "", "c": "", "https://x/v.mp4?sig=1.2": "", "b.m4s": "not_a_video", "https://x/watch?v=3": "not_a_video",
        "https://x/v": "not_a_video", "self/a.mp4": "folder_unreadable", "x" * 300 + "/a.mp4": "folder_unreadable",
        "nul\0/a.mp4": "folder_unreadable", "half \ud83d/a.mp4": "folder_unreadable", "self": "missing_video",
        "x" * 300 + ".mp4": "missing_video",
    }  # fmt: skip
    found = VideoFolder(str(tmp_path)).find(list(wanted))
    assert {path: "" for path in found.places} | {p.key: p.reason for p in found.problems} == wanted
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"file": path, "caption": "c"}) + "\n" for path in wanted))
    corpus = open_corpus(tmp_path / "list.jsonl")
    assert [corpus.counts.sum(), corpus.left_out.total()] == [3, 9]
    shards = {place: shard for shard, place in enumerate(corpus.shards)}
    assert video_extension("https://x/v.mp4?sig=1.2") == "mp4" and "https://x/v.mp4?sig=1.2" in shards
    unread: list[Problem] = []
    assert len(list(walk(str(tmp_path), unread))) == 2 and not unread
    assert not list(walk(str(tmp_path / "self"), unread)) and "symbolic links" in unread[0].detail
    (tmp_path / "list.csv").write_text("file,caption\nb.m4s,c\nnowhere.mp4,c\n")
    with pytest.raises(
        ValueError, match=r"none of its 2 videos .*b.m4s is the first: not_a_video, .*line 2: is there, but"
    ):
        open_corpus(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("file,caption\na.mp4,one, two\nnowhere.mp4,c\nnowhere.mp4,c\n")
    with pytest.raises(
        ValueError, match=r"nowhere.mp4 is the first.*; rows left out before, 1: a.mp4 .*quote what holds"
    ):
        open_corpus(tmp_path / "list.csv")
    with pytest.raises(ValueError, match=r"a.mp4: one video; name the folder of it"):
        open_corpus(tmp_path / "a.mp4")


def test_a_folder_of_files_with_texts_beside_them_is_a_corpus(tmp_path: Path) -> None:
    for name, text in (("walk/a", "a man walks"), ("run/b", "a man runs"), ("run/c", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").touch()
        if text:
            (tmp_path / f"{name}.txt").write_text(text)
    corpus = open_corpus(tmp_path)
    assert isinstance(corpus, VideoListCorpus)
    captions = [json.loads(corpus.read(corpus.sample(n, 0), ["json"])["json"])["captions"] for n in range(3)]
    assert dict(zip((ref.name for ref in corpus.refs), captions)) == {
        "run/b.mp4": ["a man runs"], "run/c.mp4": [], "walk/a.mp4": ["a man walks"]
    }  # fmt: skip
    assert open_labelled(str(tmp_path)).labels == {"run/b.mp4": "run", "run/c.mp4": "run", "walk/a.mp4": "walk"}


def test_files_that_macos_writes_beside_videos_are_none(tmp_path: Path) -> None:
    for name in ("a.mp4", "._a.mp4", "._a.txt", "b.MTS", "c.m2ts", "deep/d.ts", "deep/._d.ts"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7" * ("._" in name))
    corpus = open_corpus(tmp_path)
    assert [ref.name for ref in corpus.refs] == ["a.mp4", "b.MTS", "c.m2ts", "deep/d.ts"] and not corpus.left_out


def test_a_folder_without_videos_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.webp", "b.WEBP", "b.txt", "README"):
        (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match=r"no shards \(\*.tar\) at .*, and no videos .*: its files end in .txt, .webp; "
    ):
        open_corpus(tmp_path)


def test_a_name_that_is_no_utf_8_is_left_out_and_named(tmp_path: Path) -> None:
    for name in (b"a.mp4", b"\xff.mp4", b"deep\xff/b.mp4", "ä.mp4".encode()):
        place = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        Path(os.fsdecode(place)).touch()
    corpus = open_corpus(tmp_path)
    assert [ref.name for ref in corpus.refs] == ["a.mp4", "ä.mp4"] and corpus.lost == 2
    assert [(one.key, one.reason) for one in corpus.all_problems()] == [
        ("\udcff.mp4", "not_a_video"), ("deep\udcff/b.mp4", "not_a_video")
    ]  # fmt: skip


def test_a_folder_may_have_its_captions_in_one_file(tmp_path: Path) -> None:
    said = {
        "a": "one",
        "b.mp4": ["two", "three"],
        "c": "not this",
        "gone": "of no video",
        "d": 3,
        "e": "tab\tle\u0007",
    }
    for name in ("a", "b", "c", "d", "e", "deep/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "c.txt").write_text("its own")
    (tmp_path / "captions.json").write_text(json.dumps(said))

    def captions() -> dict[str, list[str]]:
        corpus = open_corpus(tmp_path)
        read = [json.loads(corpus.read(corpus.sample(n, 0), ["json"])["json"])["captions"] for n in range(len(corpus))]
        return {name.removesuffix(".mp4"): of for name, of in zip((ref.name for ref in corpus.refs), read) if of}

    assert captions() == {"a": ["one"], "b": ["two", "three"], "c": ["its own"]}
    told = {one.key: one.detail for one in open_corpus(tmp_path).all_problems()}
    assert told.keys() == {"captions.json", "d.mp4", "e.mp4"} and "\\x07" in told["e.mp4"]
    assert told["d.mp4"] == "captions is a number: wanted a text or a list of texts"
    assert told["captions.json"] == (
        "1 of its 6 entries name no video beside it: 'gone'; 1 of its 6 entries are no text, or list of texts: 'd'"
    )
    for damaged in (b"", b"[1, 2]", b"{", b"\xff\xfe"):
        (tmp_path / "captions.json").write_bytes(damaged)
        assert captions() == {"c": ["its own"]}
        corpus = open_corpus(tmp_path)
        assert [(one.key, one.reason) for one in corpus.all_problems()] == [("captions.json", "bad_caption")]
        assert corpus.lost == 0, "a notice"
    (tmp_path / "captions.json").write_text(json.dumps({"caption": "of this video", "a": "no"}))
    (tmp_path / "captions.mp4").touch()
    assert captions() == {"c": ["its own"], "captions": ["of this video"]}


def test_a_list_of_real_videos_stands_for_shards(real: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("bend_00000006.mp4 bend\ngone.mp4 bend\none_hand_wave_00000002.mp4 wave\n")
    found = open_labelled(str(tmp_path / "list.txt"), root=str(real / "weizmann"))
    refs = found.refs
    assert [(ref.name, found.labels[ref.name]) for ref in refs] == [
        ("bend_00000006.mp4", "bend"),
        ("one_hand_wave_00000002.mp4", "wave"),
    ]
    assert [(problem.key, problem.reason) for problem in found.problems] == [("gone.mp4", "missing_video")]
    assert found.corpus.read(refs[0], ["mp4"])["mp4"] == (real / "weizmann/bend_00000006.mp4").read_bytes()
    with pytest.raises(ValueError, match=r"relative to data.root"):
        open_labelled(str(tmp_path / "list.txt"), root=str(tmp_path))
