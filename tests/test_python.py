"""`import tgm_scale`: light, typed, the same numbers as the commands, and mistakes that say what is wanted."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tgm_scale
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import make_corpus, render_clip
from tgm_scale.evaluation.features import FrozenEncoder
from tgm_scale.evaluation.views import decode_views

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def encoder() -> tgm_scale.VideoEncoder:
    """Of a tiny model as a run of seed 0 starts it."""
    return tgm_scale.VideoEncoder(FrozenEncoder.random("tiny", 8, 64, seed=0))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    path.write_bytes(encode_video(render_clip(0).frames, 12))
    return path


@pytest.fixture(scope="module")
def clips(encoder: tgm_scale.VideoEncoder, file: Path) -> torch.Tensor:
    """uint8 [2, 3, 8, 64, 64]"""
    return encoder.read(file, windows=2)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, tgm_scale; print({'torch', 'numpy', 'transformers'} & {*sys.modules}); tgm_scale.read_video"
    code += "; print('torch' in sys.modules, 'deepspeed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "set()\nTrue False\n", done.stderr


def test_its_names_are_those_that_it_has() -> None:
    assert set(tgm_scale.__all__) <= set(dir(tgm_scale))
    for name in tgm_scale.__all__:
        assert getattr(tgm_scale, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'load_encodr'"):
        tgm_scale.__getattr__("load_encodr")


def test_its_functions_are_typed() -> None:
    for name in ("load_encoder", "read_video", "relevance", "masks", "open_corpus"):
        signature = inspect.signature(getattr(tgm_scale, name))
        untyped = [one.name for one in signature.parameters.values() if one.annotation is inspect.Parameter.empty]
        assert not untyped and signature.return_annotation is not inspect.Signature.empty, name


def test_features_are_those_that_are_probed(encoder: tgm_scale.VideoEncoder, file: Path) -> None:
    frozen = FrozenEncoder.random("tiny", 8, 64, seed=0)
    video = decode_views(file.read_bytes(), frozen.views())
    assert torch.equal(encoder.read(file), video)
    assert torch.equal(encoder(file), frozen(video)) and torch.equal(encoder(file.read_bytes()), frozen(video))
    assert torch.equal(encoder.tokens(str(file)), frozen.tokens(video))


def test_each_clip_has_what_it_has_alone(clips: torch.Tensor) -> None:
    captions = ["a red ring", "a blue square"]
    together = tgm_scale.relevance(clips, captions, patch=8)
    alone = torch.cat([tgm_scale.relevance(clips[i : i + 1], captions[i], patch=8) for i in range(2)])
    assert torch.equal(together, alone) and not torch.equal(together[0], together[1])
    one = tgm_scale.masks(clips[:1], captions[0], recipe="random", patch=8, seed=3)
    assert torch.equal(one, tgm_scale.masks(clips, captions, recipe="random", patch=8, seed=3)[:1])
    assert not torch.equal(one, tgm_scale.masks(clips[:1], recipe="random", patch=8, seed=4))


@pytest.mark.parametrize("recipe", ["text_guided", "tube", "random", "frame", "block", "attention", "part_based"])
def test_every_recipe_that_frames_can_have_hides_its_share(clips: torch.Tensor, recipe: str) -> None:
    hidden = tgm_scale.masks(clips, "a red ring", recipe=recipe, mask_ratio=0.5, patch=8)
    assert hidden.dtype == torch.bool and hidden.shape == (2, 4, 8, 8)
    assert (hidden.float().mean((1, 2, 3)) == 0.5).all()


Use = Callable[[tgm_scale.VideoEncoder, torch.Tensor], Any]
MISTAKES: dict[str, Use] = {
    "nowhere: cannot be read": lambda encoder, clips: tgm_scale.load_encoder("nowhere"),
    "frames=0: wanted a whole number": lambda encoder, clips: tgm_scale.load_encoder("nowhere", frames=0),
    "device='gpu': ": lambda encoder, clips: tgm_scale.load_encoder("nowhere", device="gpu"),
    "device='cuda': ": lambda encoder, clips: tgm_scale.load_encoder("nowhere", device="cuda"),
    r"found float32 \[2, 3, 8, 64, 64\]": lambda encoder, clips: encoder(clips.float()),
    r"wanted uint8 RGB \[B, 3, 8, 64, 64\], found uint8 \[3, 8, 64, 64\]": lambda encoder, clips: encoder(clips[0]),
    r"found uint8 \[2, 3, 4, 64, 64\]": lambda encoder, clips: encoder.tokens(clips[:, :, :4]),
    r"found uint8 \[0, 3, 8, 64, 64\]": lambda encoder, clips: encoder(clips[:0]),
    "video: wanted a tensor, .*found ndarray": lambda encoder, clips: encoder(clips.numpy()),
    "the video: empty: 0 bytes": lambda encoder, clips: encoder(b""),
    "test_python.py: not_a_video": lambda encoder, clips: encoder.read(__file__),
    "windows=True: wanted a whole number": lambda encoder, clips: encoder.read(__file__, windows=True),
    "caption: wanted text, found ' '": lambda encoder, clips: tgm_scale.relevance(clips, " "),
    "caption: 3 for 2 clips": lambda encoder, clips: tgm_scale.relevance(clips, ["a"] * 3),
    "caption: wanted text, or a list of texts, found 3": lambda encoder, clips: tgm_scale.relevance(clips, 3),
    "^towers=nowhere: no such folder": lambda encoder, clips: tgm_scale.relevance(clips, "a", towers="nowhere"),
    "scorer='vvv': wanted one of raw, value, vv": lambda encoder, clips: tgm_scale.masks(clips, "a", scorer="vvv"),
    "^size=64 is not a multiple": lambda encoder, clips: tgm_scale.relevance(clips, "a", patch=7),
    "tubelet=0: wanted a whole number": lambda encoder, clips: tgm_scale.relevance(clips, "a", tubelet=0),
    "^recipe=tubes: unknown; did you mean tube?": lambda encoder, clips: tgm_scale.masks(clips, recipe="tubes"),
    "^recipe=text_guided: follows a caption": lambda encoder, clips: tgm_scale.masks(clips),
    "^recipe=motion_guided: needs the codec's motion": lambda e, clips: tgm_scale.masks(clips, recipe="motion_guided"),
    "^mask_ratio=1.5: wanted a share": lambda encoder, clips: tgm_scale.masks(clips, recipe="tube", mask_ratio=1.5),
    "^mask_ratio='x': wanted a share": lambda encoder, clips: tgm_scale.masks(clips, recipe="tube", mask_ratio="x"),
    "^options.grid: unknown; known: sources": lambda e, clips: tgm_scale.masks(clips, "a", options={"grid": 1}),
    "^options=3: wanted values by name": lambda encoder, clips: tgm_scale.masks(clips, "a", options=3),
    "no shards .* at 'nowhere'": lambda encoder, clips: tgm_scale.open_corpus("nowhere"),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_says_what_is_wanted(encoder: tgm_scale.VideoEncoder, clips: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MISTAKES[said](encoder, clips)


def test_a_corpus_is_iterated_and_what_is_damaged_is_named(tmp_path: Path) -> None:
    make_corpus(tmp_path / "data", clips=3)
    corpus = tgm_scale.open_corpus(tmp_path / "data")
    names = [sample.name for sample in corpus]
    assert len(corpus) == 3 and len(set(names)) == 3 and corpus.left_out == {} and corpus.problems == []
    first = next(iter(corpus))
    assert len(first.captions) > 1 and first.read(4, 32).shape == (1, 3, 4, 32, 32)
    [tar] = (tmp_path / "data").glob("*.tar")
    data = bytearray(tar.read_bytes())
    place = data.index(first.video) + len(first.video) // 2
    data[place] ^= 0xFF
    times = tar.stat()
    tar.write_bytes(data)
    os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = tgm_scale.open_corpus(tmp_path / "data")
    assert [sample.name for sample in again] == names[1:]
    assert [(problem.key, problem.reason) for problem in again.problems] == [(names[0], "damaged_member")]


def test_a_sample_that_does_not_decode_is_named(tmp_path: Path, file: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(file.read_bytes())
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    samples = {sample.name: sample for sample in tgm_scale.open_corpus(tmp_path)}
    assert samples["good.mp4"].read(4, 32).shape == (1, 3, 4, 32, 32) and samples["good.mp4"].captions == []
    with pytest.raises(ValueError, match=r"^bad.mp4: not_a_video"):
        samples["bad.mp4"].read()
