"""The synthetic corpus: repeatable, true to its truth, and with captions that colour alone does not carry."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tgm_scale.contracts import Grid
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.decode import decode_clip
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus, render_clip
from tgm_scale.demo.corpus.patches import attributes, labelled_images, wording
from tgm_scale.demo.corpus.shapes import COLOURS, SHAPES
from tgm_scale.demo.corpus.truth import absent_caption, every_caption, object_tokens, read_truth

SMALL = SyntheticSpec(frames=8)


def test_a_clip_is_a_function_of_seed_and_index() -> None:
    one, again, other = (render_clip(index, SyntheticSpec(seed=3)) for index in (5, 5, 6))
    assert np.array_equal(one.frames, again.frames) and one.captions == again.captions
    assert not np.array_equal(one.frames, other.frames)
    assert one.frames.shape == (16, 64, 64, 3) and one.frames.dtype == np.uint8


def test_colour_does_not_carry_the_caption() -> None:
    for index in range(20):
        clip = render_clip(index, SMALL)
        named, same_colour, same_shape = clip.truth.objects
        assert (named.role, same_colour.role, same_shape.role) == ("object", "same_colour", "same_shape")
        assert same_colour.colour == named.colour and same_colour.shape != named.shape
        assert same_shape.shape == named.shape and same_shape.colour != named.colour
        for caption in clip.captions:
            assert named.colour in caption and named.shape in caption
        absent = absent_caption(clip.truth, index).split()
        assert not {one.colour for one in clip.truth.objects} & set(absent)
        assert not {one.shape for one in clip.truth.objects} & set(absent)


def test_the_truth_is_what_the_pixels_show() -> None:
    """Where two renderings differ in the named object's colour alone, the pixels that change are its visible ones."""
    clip = render_clip(2, SyntheticSpec(frames=4, difficulty=0.0, seed=1))
    named = clip.truth.named
    inside = clip.frames[named.visible].astype(float)
    outside = clip.frames[~np.any([one.visible for one in clip.truth.objects], axis=0)].astype(float)
    assert inside.std(0).mean() < outside.std(0).mean() + 40
    assert np.linalg.norm(inside.mean(0) - outside.mean(0)) > 30, "the object stands out from the background"
    masks = np.stack([one.visible for one in clip.truth.objects])
    assert masks.sum(0).max() <= 1, "a pixel is seen of one object at most"
    for visible, box in zip(named.visible, named.boxes, strict=True):
        rows, columns = np.nonzero(visible)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_motions_do_what_they_are_called() -> None:
    """The centre of the one mover goes left or right, and its area grows or shrinks, as its label says."""
    seen = set()
    for index in range(60):
        truth = render_clip(index, SyntheticSpec(frames=8, difficulty=0.0, seed=4, mode="one_mover")).truth
        mover = truth.named
        assert len(truth.objects) == 1
        first, last = mover.visible[0], mover.visible[-1]
        across = np.nonzero(last)[1].mean() - np.nonzero(first)[1].mean()
        growth = last.sum() / first.sum()
        if mover.motion in ("left", "right"):
            assert (across > 0) == (mover.motion == "right"), mover.motion
        if mover.motion in ("approach", "recede"):
            assert (growth > 1) == (mover.motion == "approach")
        seen.add(mover.motion)
    assert len(seen) == 7


def test_tokens_of_an_object_are_those_it_half_fills() -> None:
    visible = np.zeros((4, 16, 16), bool)
    visible[:, :8, :8] = True
    visible[:1, :8, 8:] = True  # a quarter of the first slot's other tokens
    tokens = object_tokens(visible, Grid(2, 2, 2))
    assert tokens[:, 0, 0].all()
    assert tokens[0, 0, 1] and not tokens[1, 0, 1], "one of two frames is a half"
    assert tokens.sum() == 3


def test_a_corpus_is_repeatable_and_begins_alike_at_any_size(tmp_path: Path) -> None:
    spec = replace(SMALL, seed=7)
    make_corpus(tmp_path / "a", 6, spec, workers=2)
    make_corpus(tmp_path / "b", 4, spec)
    members = []
    for name in ("a", "b"):
        corpus = open_corpus(tmp_path / name)
        members.append([corpus.read(corpus.sample(0, row), ["mp4", "json"]) for row in range(4)])
    assert members[0] == members[1]
    sample = members[0][0]
    truth, clip = read_truth(sample["json"]), render_clip(0, spec)
    assert np.array_equal(truth.named.visible, clip.truth.named.visible)
    assert json.loads(sample["json"])["captions"] == clip.captions
    decoded = decode_clip(sample["mp4"], 8, 1, 0.0).video.astype(float)
    assert np.abs(decoded - clip.frames).mean() < 12, "H.264 stays near the rendering"


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="named, one_mover"):
        SyntheticSpec(mode="nonsense")
    with pytest.raises(ValueError, match="difficulty=2"):
        SyntheticSpec(difficulty=2)
    with pytest.raises(ValueError, match="no key 'truth'"):
        read_truth('{"captions": []}')
    make_corpus(tmp_path / "x", 1, SMALL)
    with pytest.raises(ValueError, match="holds shards already"):
        make_corpus(tmp_path / "x", 1, SMALL)


def test_a_damaged_truth_is_told_and_no_more_is_unpacked_than_its_size() -> None:
    whole = render_clip(0, SMALL).truth.to_json()
    assert read_truth({"truth": whole}).named.visible.shape[0] == 8
    bomb = base64.b64encode(zlib.compress(bytes(100 << 20))).decode()
    changes = [{"frames": -1}, {"frames": "8"}, {"width": 10**9}, {"objects": 7}, {"objects": [{}]}, {"height": None}]
    changes += [{"objects": [{**whole["objects"][0], "visible": text}]} for text in ("", "text", bomb[:40], 3)]
    for change in changes:
        with pytest.raises(ValueError, match="truth is damaged"):
            read_truth({"truth": {**whole, **change}})
    for sample in ("[]", "7", "null"):
        with pytest.raises(ValueError, match="no key 'truth'"):
            read_truth(sample)
    tracemalloc.start()
    with pytest.raises(ValueError, match="truth is damaged"):
        read_truth({"truth": {**whole, "objects": [{**whole["objects"][0], "visible": bomb}]}})
    assert tracemalloc.get_traced_memory()[1] < 20 << 20, "of 100 MB of zeros what the frames have"
    tracemalloc.stop()


def test_labelled_images_say_what_each_patch_shows() -> None:
    images, labels, present = labelled_images(0, 0, 12, 0.3, 64, 8)
    again = labelled_images(0, 6, 6, 0.3, 64, 8)
    assert images.shape == (12, 3, 64, 64) and images.dtype == torch.uint8
    assert labels.shape == (12, 64) and present.shape == (12, len(COLOURS) * len(SHAPES))
    assert len(again[0]) == 6
    shown = [set(label[label >= 0].tolist()) for label in labels]
    held = [set(holds.nonzero().flatten().tolist()) for holds in present]
    assert [len(concepts) for concepts in held[:2]] == [1, 1], "one in six holds a single object"
    assert all(len(concepts) >= 2 for concepts in held[2:])
    # an object may be seen without filling 0.4 of any patch, or the other way round, but rarely
    assert sum(one == other for one, other in zip(shown, held, strict=True)) >= 10
    colour, shape = attributes()
    texts, names = wording(3), list(COLOURS)
    assert len(texts) == len(colour) + len(COLOURS) + len(SHAPES)
    for number, text in enumerate(texts[: len(colour)]):
        assert names[int(colour[number])] in text and list(SHAPES)[int(shape[number])] in text
    assert texts == wording(3) != wording(4)


def test_every_caption_is_said_once() -> None:
    captions = list(every_caption())
    assert len(captions) == len(set(captions)) == len(COLOURS) * len(SHAPES) * 7 * 3
