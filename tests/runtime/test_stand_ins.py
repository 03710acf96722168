"""Pointers of git LFS and pages of servers, which lie where files were wanted: each is named, with the remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tgm_scale.conversion.read import read
from tgm_scale.data.building.annotation_files import lines_of
from tgm_scale.data.building.annotations import captions_of, unfit_captions
from tgm_scale.data.lists.reading import read_list
from tgm_scale.data.shards.inventory import refuse_without_captions
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.video_list import folder_listing
from tgm_scale.data.video.decode import DecodeError, decode_clip
from tgm_scale.guidance.tower_folder import SMALL_TOWERS
from tgm_scale.guidance.towers import load_text_tower
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.outside.stand_ins import stand_in
from tgm_scale.runtime.tensors import load_tensors, weights_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
PAGE = b"\n<!doctype HTML>\n<html><head><title>Sign in</title></head></html>\n" * 30
SAVED = b"\xef\xbb\xbf<!-- saved from url=(0014)about:internet -->\n<html><body>"
PROLOGUE = b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">'
LATE = b"\n" * 80 + b"<HEAD><title>Moved</title>"
DENIED = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'
LISTED = b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3"><Name>b</Name></ListBucketResult>'
ANSWERS = (b'{"error":"Repository not found"}', b'{ "message" : "Not Found" }', b'\n{"Code": "AccessDenied"}')
SAID = {POINTER: "a git LFS pointer, not the file: run 'git lfs pull'", PAGE: "a web page, not the file: open its"}


@pytest.mark.parametrize("content", [POINTER, PAGE])
@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "list.csv", "list.json", "list.parquet", "notes.jsonl"])
def test_what_lies_in_the_place_of_a_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    readers = {"m.safetensors": [load_tensors, read], "m.pth": [weights_of, read], "notes.jsonl": [notes]}
    for reader in readers.get(name, [read_list]):
        with pytest.raises(ValueError) as refused:
            reader(file)  # type: ignore[operator]
        assert f"{file}: {SAID[content]}" in str(refused.value), reader


def notes(file: Path) -> None:
    list(lines_of([file]))


@pytest.mark.parametrize("content", [POINTER, PAGE])
def test_in_the_place_of_a_video_it_is_the_samples_reason(content: bytes) -> None:
    with pytest.raises(DecodeError) as refused:
        decode_clip(content, 8, 1, 0.5)
    assert refused.value.reason == "not_a_video" and refused.value.detail.startswith(SAID[content])


@pytest.mark.parametrize(
    "start",
    [
        SAVED,
        PROLOGUE,
        LATE,
        "\ufeff<html>".encode("utf-16-le"),
        b"<script>location",
        b"<title>403</title>",
        b"<body ><h1>",
        b"<html/>",
        b"<script",
    ],
)
def test_a_page_may_begin_in_many_ways(start: bytes) -> None:
    assert stand_in(start).startswith("a web page, not the file")


def test_a_pointer_may_have_a_mark_and_a_store_says_errors() -> None:
    assert stand_in(b"\xef\xbb\xbf" + POINTER).startswith("a git LFS pointer")
    named = DENIED.replace(b"<Error>", b'<Error xmlns="http://doc.s3.amazonaws.com/2006-03-01">')
    for said in (DENIED, named, LISTED, *ANSWERS):
        assert stand_in(said).startswith("a server's error, not the file")
    with pytest.raises(ValueError, match="line 1 column"):
        json_of('{"code": "A2", "label": "bend",}')
    assert [stand_in(said, json=True) for said in ANSWERS] == ["", "", ""]


def test_other_text_is_not_taken_for_one() -> None:
    for start in (
        b"",
        b"<clip>a.mp4",
        b"file,label\n<html>.mp4,x",
        b"version 1",
        b"\0" * 64,
        b'<?xml version="1.0"?><a>',
        b"<headset on> a man talks",
        b"<error> no caption",
        b"version https://git-lfs is cool",
        b'{"file": "a.mp4"}',
    ):
        assert stand_in(start) == ""


def test_a_caption_file_that_is_one_is_no_caption(tmp_path: Path) -> None:
    """Of a video beside it, in a folder's captions.json, and in a shard."""
    for name in ("pointer", "page", "broken", "odd", "whole", "bare"):
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "pointer.txt").write_bytes(POINTER)
    (tmp_path / "page.json").write_bytes(PAGE)
    (tmp_path / "broken.json").write_text("{broken")
    (tmp_path / "odd.txt").write_bytes(b"a\x01\x02b")
    (tmp_path / "whole.txt").write_text("a dog")
    found = folder_listing(str(tmp_path))
    assert found is not None
    assert {entry.path: entry.captions for entry in found.entries if entry.captions} == {"whole.mp4": ["a dog"]}
    told = {problem.key: problem.detail for problem in found.problems if problem.reason == "bad_caption"}
    assert told.keys() == {"pointer.mp4", "page.mp4", "broken.mp4", "odd.mp4"}
    assert told["pointer.mp4"] == SAID[POINTER] and SAID[PAGE] in told["page.mp4"] and "no JSON" in told["broken.mp4"]
    (tmp_path / "captions.json").write_bytes(POINTER)
    again = folder_listing(str(tmp_path))
    assert again is not None and any(
        problem.key == "captions.json" and SAID[POINTER] in problem.detail for problem in again.problems
    )
    for video in ("whole.mp4", "bare.mp4", "odd.mp4"):
        (tmp_path / video).unlink()
    with pytest.raises(ValueError, match=rf"none of 3 samples looked at has a caption \(.*: {SAID[POINTER]}"):
        refuse_without_captions([open_corpus(tmp_path)], "masking.recipe=tube")
    for answer in ANSWERS:
        assert captions_of({"txt": answer}) == []
    assert captions_of({"txt": POINTER}) == [] and unfit_captions({"txt": POINTER}) == [SAID[POINTER]]


def test_in_the_place_of_a_towers_weights_it_is_named(tmp_path: Path) -> None:
    shutil.copytree(SMALL_TOWERS, tmp_path / "clip")
    whole = (tmp_path / "clip" / "tokenizer_config.json").read_bytes()
    (tmp_path / "clip" / "tokenizer_config.json").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is a git LFS pointer, not the file"):
        load_text_tower(str(tmp_path / "clip"))
    (tmp_path / "clip" / "tokenizer_config.json").write_bytes(whole)
    (tmp_path / "clip" / "model.safetensors").write_bytes(PAGE)
    with pytest.raises(ValueError, match=r"model\.safetensors is a web page, not the file"):
        load_text_tower(str(tmp_path / "clip"))
    shutil.copy(SMALL_TOWERS / "model.safetensors", tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON: a git LFS pointer, not the file"):
        load_text_tower(str(tmp_path / "clip"))
