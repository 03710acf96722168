"""`import tgm_scale`: light, typed, the same numbers as the commands, and mistakes that say what is wanted."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.fixture(scope="module")
def guidance() -> tgm_scale.Guidance:
    return tgm_scale.load_guidance(patch=8)


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
    for name in ("load_encoder", "read_video", "load_guidance", "open_corpus"):
        signature = inspect.signature(getattr(tgm_scale, name))
        untyped = [one.name for one in signature.parameters.values() if one.annotation is inspect.Parameter.empty]
        assert not untyped and signature.return_annotation is not inspect.Signature.empty, name


def test_features_are_those_that_are_probed(encoder: tgm_scale.VideoEncoder, file: Path) -> None:
    frozen = FrozenEncoder.random("tiny", 8, 64, seed=0)
    video = decode_views(file.read_bytes(), frozen.views())
    assert torch.equal(encoder.read(file), video)
    assert torch.equal(encoder(file), frozen(video)) and torch.equal(encoder(file.read_bytes()), frozen(video))
    assert torch.equal(encoder.tokens(str(file)), frozen.tokens(video))


def test_each_clip_has_what_it_has_alone(clips: torch.Tensor, guidance: tgm_scale.Guidance) -> None:
    captions = ["a red ring", "a blue square"]
    together = guidance.relevance(clips, captions)
    alone = torch.cat([guidance.relevance(clips[i : i + 1], captions[i]) for i in range(2)])
    assert torch.equal(together, alone) and not torch.equal(together[0], together[1])
    one = guidance.masks(clips[:1], captions[0], recipe="random", seed=3)
    assert torch.equal(one, guidance.masks(clips, captions, recipe="random", seed=3)[:1])
    assert not torch.equal(one, guidance.masks(clips[:1], recipe="random", seed=4))


@pytest.mark.parametrize("recipe", ["text_guided", "tube", "random", "frame", "block", "attention", "part_based"])
def test_every_recipe_that_frames_can_have_hides_its_share(
    clips: torch.Tensor, guidance: tgm_scale.Guidance, recipe: str
) -> None:
    hidden = guidance.masks(clips, "a red ring", recipe=recipe, mask_ratio=0.5)
    assert hidden.dtype == torch.bool and hidden.shape == (2, 4, 8, 8)
    assert (hidden.float().mean((1, 2, 3)) == 0.5).all()


@dataclass
class Given:
    encoder: tgm_scale.VideoEncoder
    guidance: tgm_scale.Guidance
    clips: torch.Tensor

    def masks(self, *caption: Any, **arguments: Any) -> torch.Tensor:
        return self.guidance.masks(self.clips, *caption, **arguments)


MISTAKES: dict[str, Callable[[Given], Any]] = {
    "frames=0: wanted a whole number": lambda at: tgm_scale.load_encoder("nowhere", frames=0),
    "frames=10+: wanted a whole number from 1 to 4,096": lambda at: tgm_scale.load_encoder("nowhere", frames=10**30),
    "windows=1000000: wanted a whole number from 1 to 1,000$": lambda at: at.encoder.read(__file__, windows=10**6),
    "seed=10+: wanted a whole number of 64 bits": lambda at: at.masks(recipe="tube", seed=10**30),
    "device='gpu': ": lambda at: tgm_scale.load_encoder("nowhere", device="gpu"),
    "device='cuda': ": lambda at: tgm_scale.load_encoder("nowhere", device="cuda"),
    r"device='\[\]': wanted a name": lambda at: tgm_scale.load_guidance(device=[]),
    "^path=None: wanted a path": lambda at: tgm_scale.load_encoder(None),
    "^path='': wanted a path": lambda at: tgm_scale.load_encoder(""),
    "^source=None: wanted a path": lambda at: tgm_scale.read_video(None),
    "^source=3: wanted a path": lambda at: tgm_scale.read_video(3),
    "^spec=None: wanted a path": lambda at: tgm_scale.open_corpus(None),
    "^spec=3: wanted a path": lambda at: tgm_scale.open_corpus([3]),
    "^root=3: wanted a path": lambda at: tgm_scale.open_corpus("clips.csv", root=3),
    "^part='val': wanted one of train, test, all": lambda at: tgm_scale.open_corpus("videos", part="val"),
    r"found float32 \[2, 3, 8, 64, 64\]": lambda at: at.encoder(at.clips.float()),
    r"wanted uint8 RGB \[B, 3, 8, 64, 64\], found uint8 \[3, 8, 64, 64\]": lambda at: at.encoder(at.clips[0]),
    r"found uint8 \[2, 3, 4, 64, 64\]": lambda at: at.encoder.tokens(at.clips[:, :, :4]),
    r"found uint8 \[0, 3, 8, 64, 64\]": lambda at: at.encoder(at.clips[:0]),
    "video: wanted a tensor, .*found ndarray": lambda at: at.encoder(at.clips.numpy()),
    "the video: empty: 0 bytes": lambda at: at.encoder(b""),
    "test_python.py: not_a_video": lambda at: at.encoder.read(__file__),
    "windows=True: wanted a whole number": lambda at: at.encoder.read(__file__, windows=True),
    "stride=1.0: wanted a whole number": lambda at: tgm_scale.read_video(__file__, stride=1.0),
    "caption: wanted text, found ' '": lambda at: at.guidance.relevance(at.clips, " "),
    r"caption: wanted text, found '\\ud800 x'": lambda at: at.guidance.relevance(at.clips, "\ud800 x"),
    "caption: 3 for 2 clips": lambda at: at.guidance.relevance(at.clips, ["a"] * 3),
    "caption: wanted text, or a list of texts, found 3": lambda at: at.guidance.relevance(at.clips, 3),
    "caption: wanted text, or a list of texts, found None": lambda at: at.guidance.relevance(at.clips, None),
    "video: wanted a tensor, .*found NoneType": lambda at: at.guidance.relevance(None, "a"),
    "^towers=None: wanted a path": lambda at: tgm_scale.load_guidance(None),
    "^towers=.*tests: missing config.json": lambda at: tgm_scale.load_guidance(ROOT / "tests"),
    "^scorer='vvv': wanted one of raw, value, vv": lambda at: tgm_scale.load_guidance(scorer="vvv"),
    "^scorer=None: wanted one of raw, value, vv": lambda at: tgm_scale.load_guidance(scorer=None),
    "^size=64 is not a multiple": lambda at: tgm_scale.load_guidance(patch=7).relevance(at.clips, "a"),
    "^tubelet=0: wanted a whole number": lambda at: tgm_scale.load_guidance(tubelet=0),
    "^recipe=tubes: unknown; did you mean tube?": lambda at: at.masks(recipe="tubes"),
    "^recipe=None: wanted the name of one": lambda at: at.masks(recipe=None),
    "^recipe=text_guided: follows a caption": lambda at: at.masks(),
    "^recipe=motion_guided: needs the codec's motion": lambda at: at.masks(recipe="motion_guided"),
    "^mask_ratio=1.5: wanted a share": lambda at: at.masks(recipe="tube", mask_ratio=1.5),
    "^mask_ratio='x': wanted a share": lambda at: at.masks(recipe="tube", mask_ratio="x"),
    "^mask_ratio=nan: wanted a share": lambda at: at.masks(recipe="tube", mask_ratio=float("nan")),
    "^mask_ratio=True: wanted a share": lambda at: at.masks(recipe="tube", mask_ratio=True),
    "^seed='1': wanted a whole number": lambda at: at.masks(recipe="tube", seed="1"),
    "^seed=1.0: wanted a whole number": lambda at: at.masks(recipe="tube", seed=1.0),
    "^options.grid: unknown; known: sources": lambda at: at.masks("a", options={"grid": 1}),
    "^options=3: wanted values by name": lambda at: at.masks("a", options=3),
    r"^options=\[\]: wanted values by name": lambda at: at.masks("a", options=[]),
    "^options.temperature='hot': wanted 0, or a number": lambda at: at.masks("a", options={"temperature": "hot"}),
    "^options.rule=None: unknown": lambda at: at.masks("a", options={"rule": None}),
    "a video or a pattern of videos: give the folder, or a list": lambda at: tgm_scale.open_corpus("videos/*.mp4"),
    "videos: give the folder, or a list": lambda at: tgm_scale.open_corpus(["a.mp4", "b.mp4"]),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_says_what_is_wanted(
    encoder: tgm_scale.VideoEncoder, guidance: tgm_scale.Guidance, clips: torch.Tensor, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        MISTAKES[said](Given(encoder, guidance, clips))


NOWHERE: list[Callable[[], Any]] = [
    lambda: tgm_scale.load_encoder("nowhere"),
    lambda: tgm_scale.load_guidance("nowhere"),
    lambda: tgm_scale.read_video("nowhere"),
    lambda: tgm_scale.open_corpus("nowhere"),
    lambda: tgm_scale.open_corpus("nowhere.csv"),
]


@pytest.mark.parametrize("use", NOWHERE, ids=range(len(NOWHERE)))
def test_what_is_not_there_is_a_file_that_was_not_found(use: Callable[[], Any]) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        use()


def test_a_misspelt_packaged_clip_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"^towers=smal: no such file or folder; 'small' is the packaged CLIP"):
        tgm_scale.load_guidance("smal")


def test_a_mistake_is_one_error_and_no_chain_of_the_same(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder that can be read") as caught:
        tgm_scale.load_encoder(tmp_path)
    assert caught.value.__cause__ is None


def test_former_names_of_values_are_read_as_in_a_configuration(
    clips: torch.Tensor, guidance: tgm_scale.Guidance
) -> None:
    former, current = (guidance.masks(clips, "a", options={"rule": rule}) for rule in ("gumbel_top_k", "top_k"))
    assert torch.equal(former, current)
    assert torch.equal(
        guidance.masks(clips, recipe="tube", seed=np.int64(3)), guidance.masks(clips, recipe="tube", seed=3)
    )


def test_what_of_a_list_is_not_found_is_told_with_the_arguments_name(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("file,caption\na.mp4,a ring\n")
    with pytest.raises(ValueError, match=r"relative to root \(default") as caught:
        tgm_scale.open_corpus(tmp_path / "clips.csv")
    assert "data." not in str(caught.value)


def test_a_list_with_a_split_is_read_whole_or_by_its_parts(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(b"not looked at")
    (tmp_path / "labels.csv").write_text("file,label,split\na.mp4,x,train\nb.mp4,y,test\nc.mp4,x,train\n")
    counts = [len(tgm_scale.open_corpus(tmp_path, part=part)) for part in ("train", "test", "all")]
    assert [*counts, len(tgm_scale.open_corpus(tmp_path))] == [2, 1, 3, 3]


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
    assert len(again) == 3, "by the index: nothing is read yet"
    assert [sample.name for sample in again] == names[1:]
    assert [(problem.key, problem.reason) for problem in again.problems] == [(names[0], "damaged_member")]
    assert again.left_out == {"damaged_member": 1} and len(again) == 2 == sum(1 for _ in again)


def test_a_sample_that_does_not_decode_is_named(tmp_path: Path, file: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(file.read_bytes())
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    samples = {sample.name: sample for sample in tgm_scale.open_corpus(tmp_path)}
    assert samples["good.mp4"].read(4, 32).shape == (1, 3, 4, 32, 32) and samples["good.mp4"].captions == []
    with pytest.raises(ValueError, match=r"^bad.mp4: not_a_video"):
        samples["bad.mp4"].read()
