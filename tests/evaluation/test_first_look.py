"""What a look at clips and captions shows of them before they are used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import render_clip
from tgm_scale.evaluation.first_look import caption_notes, short_note, side_note
from tgm_scale.guidance.text import TextTower
from tgm_scale.guidance.towers import load_text_tower, tower_folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of 16 frames and one that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for clip in range(4):
        (folder / f"{clip}.mp4").write_bytes(encode_video(render_clip(clip).frames[:16], 12))
    (folder / "none.mp4").write_bytes(b"no video")
    return folder


def test_clips_that_are_shorter_than_a_window_are_told(clips: Path) -> None:
    corpus = open_corpus(clips)
    assert short_note([corpus], 8, 2, "dense") == "" == short_note([corpus], 16, 30, "segments")
    assert short_note([corpus], 16, 4, "dense") == (
        "4 of 4 clips looked at are shorter than a window of 61 frames (16 frames, data.stride=4) and repeat their "
        "last one: 69% of what is seen of them all: lower data.stride or data.frames, or set data.sampling=segments"
    )
    assert short_note([corpus], 16, 4, "dense", workers=2) == short_note([corpus], 16, 4, "dense")
    assert "a window of 17 frames (17 frames, data.stride=1)" in short_note([corpus], 17, 1, "dense")


@pytest.mark.parametrize(
    "text",
    [
        "moves to the left",
        "Swipe_Right",
        "turn-left",
        "leftwards",
        "draws a circle counter clockwise",
        "anticlockwise",
    ],
)
def test_a_side_is_named(text: str) -> None:
    assert side_note(["a dog", text]).startswith(
        "data.flip=true mirrors half of the clips, and 1 of 2 captions looked"
    )


def test_no_side_is_named() -> None:
    plain = [
        "brightly lit",
        "a cleft",
        "copyrights",
        "leftover",
        "a man left the room",
        "all that is left",
        "right away",
    ]
    assert side_note(plain) == "" == side_note([])


@pytest.fixture(scope="module")
def small() -> TextTower:
    return load_text_tower(tower_folder("small"))


def _without_points(captions: list[str]) -> Tensor:
    """As SigLIP's tokenizer reads them."""
    words = [[hash(word) % 1000 for word in re.sub(r"[.!?]", "", caption).split()] for caption in captions]
    return torch.tensor([[*numbers, *[0] * 16][:16] for numbers in words])


def test_captions_that_are_read_otherwise_than_meant_are_told(small: TextTower) -> None:
    plain = ["a red circle moves", "a dog", "circle", "[MASK] a dog", "one, two"]
    assert caption_notes(plain, small) == [] == caption_notes([], small)
    ends = ["a red circle moves .", "a dog !", "circle ?"]  # which a tokenizer may leave out
    assert caption_notes(ends, TextTower(_without_points, small._embed, small.width, small.device)) == []
    long = " ".join(["a red circle moves to the left"] * 30)
    [cut] = caption_notes([*plain, f"{long} first", f"{long} second"], small)
    assert cut.startswith(
        "2 of 7 captions looked at have more tokens than the text tower takes, such as 'a red circle"
    )
    assert caption_notes([long], None) == [], "nothing reads it"
    lines, pandas, absent = caption_notes([*plain, "a dog\na cat", "['a dog', 'a cat']", '["a"]', "nan"], None)
    assert lines.startswith("1 of 9 captions looked at have several lines") and "are one each" in lines
    assert pandas.startswith("2 of 9 captions looked at are a list in one text, such as")
    assert absent.startswith("captions 'nan' look like a missing value")
