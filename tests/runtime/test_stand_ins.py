"""Pointers of git LFS and pages of servers, which lie where files were wanted: each is named, with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale.conversion.read import read
from tgm_scale.data.building.annotation_files import lines_of
from tgm_scale.data.lists.reading import read_list
from tgm_scale.data.video.decode import DecodeError, decode_clip
from tgm_scale.runtime.outside.stand_ins import stand_in
from tgm_scale.runtime.tensors import load_tensors, weights_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
PAGE = b"\n<!doctype HTML>\n<html><head><title>Sign in</title></head></html>\n" * 30
BEGUN = b"\xef\xbb\xbf<HTML lang=en>"
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


def test_other_text_is_not_taken_for_one() -> None:
    assert stand_in(BEGUN)
    for start in (b"", b"<clip>a.mp4", b"file,label\n<html>.mp4,x", b"version 1", b"\0" * 64):
        assert stand_in(start) == ""
