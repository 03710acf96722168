"""Masks judged on annotated videos: the figures by hand, the forms of truth, the command."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import launch
import numpy as np
import pytest
import torch
from PIL import Image

from tgm_scale import cli
from tgm_scale.contracts import Grid
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.video.decode import DecodeError
from tgm_scale.data.video.encode import encode_video
from tgm_scale.evaluation.masks import evaluate as evaluate_masks
from tgm_scale.evaluation.masks.agreement import centre_score, score_clip, summarise, upper_bound
from tgm_scale.evaluation.masks.annotated import clips, find, token_share
from tgm_scale.evaluation.masks.relevance import slot_aucs
from tgm_scale.evaluation.views import Views, decode_views
from tgm_scale.masking.recipes import build_masker

ROOT = Path(__file__).parents[2]
GRID = Grid(2, 4, 4)

SAMPLING = Sampling(4, 2, 64, Grid(2, 4, 4), seed=0)


def test_the_figures_by_hand() -> None:
    shown = torch.zeros(2, 4, 4)
    shown[:, 0, 0], shown[:, 0, 1] = 1.0, 0.5  # the object: one token, and half of another
    relevance = torch.zeros(1, 2, 4, 4)
    relevance[:, :, 0, 0], relevance[:, :, 1], relevance[:, :, 0, 1] = 3.0, 1.0, 2.0
    relevance[0, 1, 0, 0] = 0.5  # in the second slot the row below scores higher
    score = score_clip(build_masker("text_guided", GRID, 0.25), "a", shown, {"relevance": relevance})
    first, second = 1.0, 0.5 / 1.5  # hidden: (0, 0), (0, 1), two of row 1; then (0, 1), three of row 1
    assert score.hidden == pytest.approx((first + second) / 2)
    assert score.lift == pytest.approx(score.hidden / 0.25)
    assert score.pointing == 1.0  # (0, 1) counts: half of it shows the object
    # slot 2: of 14 other tokens 4 score above 0.5, none above 2
    assert score.auc == pytest.approx((1.0 + (14 + 10) / 28) / 2)
    assert upper_bound(build_masker("tube", GRID, 0.25), "a", shown).hidden == 1.0
    assert centre_score(build_masker("tube", GRID, 0.25), "a", shown).hidden == 0.0


def test_the_auc_is_the_area_below_the_curve() -> None:
    """By the trapezoids between thresholds, as scikit-learn's roc_auc_score has it."""
    draw = torch.Generator().manual_seed(0)
    saliency = torch.randint(4, (3, 4, 5), generator=draw).float()
    shows = torch.rand(3, 4, 5, generator=draw) < 0.4
    shows[2] = False  # a slot without the object has none
    expected = []
    for values, truth in zip(saliency[:2], shows[:2]):
        right, wrong = (
            [float((values[of] >= at).float().mean()) for at in range(4, -1, -1)] for of in (truth, ~truth)
        )
        expected.append(np.trapezoid(right, wrong))
    assert slot_aucs(saliency, shows) == pytest.approx(expected, abs=1e-6)


def test_videos_count_alike_whatever_their_clips() -> None:
    masker = build_masker("text_guided", GRID, 0.25)
    shown = torch.zeros(2, 4, 4)
    shown[:, 0, 0] = 1.0
    found, missed = (torch.zeros(1, 2, 4, 4) for _ in range(2))
    found[:, :, 0, 0], missed[:, :, 1] = 1.0, 1.0
    clips_of = [("a", found), ("a", found), ("b", missed)]
    scores = [score_clip(masker, name, shown, {"relevance": relevance}) for name, relevance in clips_of]
    summary = summarise(scores)
    assert summary.lift == pytest.approx(2.0) and summary.lift_by_video == {"a": 4.0, "b": 0.0}
    assert summary.lift_by_size == {"middle": pytest.approx(8 / 3)}  # one token of 16, by clips
    assert summary.auc == pytest.approx((1 + (11 * 0.5) / 15) / 2, abs=0.02)


def square_video() -> tuple[bytes, np.ndarray]:
    """A textured square of 24 pixels that moves right over a still texture, 64 x 96 pixels, and its truth."""
    rng = np.random.default_rng(0)
    ground, thing = (np.kron(rng.integers(0, 256, size), np.ones((4, 4, 1))) for size in ((16, 24, 3), (6, 6, 3)))
    frames, truth = np.empty((12, 64, 96, 3), np.uint8), np.zeros((12, 64, 96), bool)
    for t in range(12):
        frames[t] = ground
        frames[t, 16:40, 20 + 3 * t : 44 + 3 * t] = thing
        truth[t, 16:40, 20 + 3 * t : 44 + 3 * t] = True
    return encode_video(frames, 25), truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, one for each form of truth, one without any, captions."""
    folder = tmp_path_factory.mktemp("annotated")
    data, truth = square_video()
    for name in ("packed", "pictures", "boxes", "alone"):
        (folder / f"{name}.mp4").write_bytes(data)
    np.savez(folder / "packed.masks.npz", packed=np.packbits(truth, axis=-1), shape=np.array(truth.shape))
    (folder / "pictures").mkdir()
    for t, picture in enumerate(truth):
        Image.fromarray(picture.astype(np.uint8) * 7).save(folder / "pictures" / f"{t:05d}.png")
    boxes = [[[20 + 3 * t, 16, 44 + 3 * t, 40]] for t in range(12)]
    (folder / "boxes.boxes.json").write_text(json.dumps(boxes))
    (folder / "captions.json").write_text(json.dumps({"packed": "a square", "boxes": ["a square", "it moves"]}))
    return folder


def test_every_form_of_truth_says_the_same(folder: Path) -> None:
    pairs = find(folder, folder).pairs
    assert [file.stem for file, _ in pairs] == ["boxes", "packed", "pictures"]
    read = [list(clips(file, truth, 2, SAMPLING)) for file, truth in pairs]
    assert [len(of_video) for of_video in read] == [2, 2, 2]
    for a, b in ((read[0], read[1]), (read[1], read[2])):
        for one, other in zip(a, b):
            assert torch.equal(one.object_SRC, other.object_SRC) and torch.equal(one.video, other.video)
    clip = read[0][0]
    assert float(clip.object_SRC.mean()) == pytest.approx(float(clip.object_THW.float().mean()), abs=0.01)
    assert clip.motion_SRC[clip.object_SRC > 0.9].mean() > 5 * clip.motion_SRC[clip.object_SRC == 0].mean()


def test_clips_are_drawn_as_the_run_reads_them(folder: Path) -> None:
    """Of whole clips, and of one brightness and contrast, where the configuration says so."""
    pair = folder / "packed.mp4", folder / "packed.masks.npz"
    whole = replace(SAMPLING, segments=True)
    [clip], [light] = ([*clips(*pair, 1, given)] for given in (whole, replace(whole, standardise=True)))
    views = Views(4, 64, 2, "segments"), Views(4, 64, 2, "segments", standardise=True)
    read = [decode_views(pair[0].read_bytes(), given)[0] for given in views]
    assert torch.equal(clip.video, read[0]) and torch.equal(light.video, read[1])
    assert not torch.equal(read[0], read[1]) and torch.equal(clip.object_SRC, light.object_SRC)
    shown = torch.from_numpy(square_video()[1])[[1, 4, 7, 10], :, 16:80]
    assert torch.equal(clip.object_THW, shown)


def test_token_share_by_hand() -> None:
    shown = np.zeros((4, 6, 6), bool)
    shown[0, :3, :3] = shown[1, 0, :3] = True
    assert token_share(shown, Grid(2, 2, 2))[:, 0, 0].tolist() == pytest.approx([(9 + 3) / 18, 0.0])


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return launch.run(1, ["-m", "tgm_scale", "masks", "evaluate", *arguments], code)


def test_the_command_judges_every_recipe_that_can_run(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    small = ["data.size=64", "data.frames=4", "model.patch=8", "guidance.towers=small", "masking.mask_ratio=0.5"]
    done = run("--videos", str(folder), "--clips", "1", "--output", str(tmp_path / "out"), *small)
    kept = json.loads((tmp_path / "out" / "figures.json").read_text())
    figures = kept["recipes"]
    assert {"random", "tube", "motion_guided", "flow_guided", "attention", "text_guided (vv)"} <= figures.keys()
    assert figures["motion_guided"]["lift"] > 1.3 > 1.15 > figures["random"]["lift"] > 0.85
    assert figures["motion_guided"]["auc"] > 0.9
    assert set(figures["text_guided (raw)"]["lift_by_video"]) == {"packed", "boxes"}  # those with a caption
    assert kept["data"][0]["left_out"] == {"no_truth": 1} and kept["data"][0]["usable"] == 3
    assert "| motion_guided |" in done.stdout and "text_guided (raw): the relevance points" in done.stdout
    for name in ("boxes", "packed", "pictures"):
        assert Image.open(tmp_path / "out" / f"{name}.png").width > 300


def main(arguments: Sequence[str]) -> int:
    return cli.main(["masks", "evaluate", *arguments])


FEW = ["--recipes", "tube", "--clips", "1", "data.size=64", "data.frames=4", "model.patch=8"]


@pytest.mark.parametrize("written", ["tube random part_based", "tube,random,part_based", "tube, random ,part_based"])
def test_names_with_blanks_or_commas_between(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(evaluate_masks, "evaluate", lambda options: seen.append(options) or 0)
    for words in (["--recipes", *written.split(), "data.size=64"], ["data.size=64", "--recipes", *written.split()]):
        assert main(["--videos", "x", *words]) == 0
        assert seen[-1].recipes == ["tube", "random", "part_based"] and seen[-1].overrides == ["data.size=64"]


def test_what_was_left_out_is_said_and_kept(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the start what is not there, at the end also what could not be read; above the share it stops."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(folder, videos)
    data = (videos / "packed.mp4").read_bytes()
    for name in ("broken", "never", "misfit", "twice"):
        (videos / f"{name}.mp4").write_bytes(data)
        (videos / f"{name}.boxes.json").write_text("[[], []]" if name == "misfit" else "[" + "[]," * 11 + "[]]")
    (videos / "broken.mp4").write_bytes(data[: len(data) // 2])
    (videos / "never.boxes.json").write_text("[" + "[[-9, -9, -2, -2]]," * 11 + "[]]")  # outside of the picture
    (videos / "twice.mkv").write_bytes(data)
    np.savez(videos / "gone.masks.npz", packed=np.zeros((1, 1, 1), np.uint8), shape=np.ones(3, int))
    arguments = ["--videos", str(videos), "--output", str(out), *FEW]
    assert main([*arguments, "data.max_left_out_share=0.9"]) == 0
    said = capsys.readouterr().out
    reasons = {"ambiguous": 2, "missing_video": 1, "no_truth": 1}
    assert "videos: 6 usable (videos with a truth, 2 of them with a caption)" in said
    assert f"left out, 40.00% (all named in {out / 'left_out.jsonl'}):" in said
    assert "no_truth: 1 (alone.mp4: " in said and "missing_video: 1 (gone.masks.npz: " in said
    (kept,) = json.loads((out / "figures.json").read_text())["data"]
    later = {"truncated": 1, "bad_truth": 1, "object_not_seen": 1}
    assert kept["usable"] == 3 and kept["share"] == 0.7 and kept["left_out"] == reasons | later
    rows = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows} == {
        "alone.mp4": "no_truth",
        "broken.mp4": "truncated",
        "gone.masks.npz": "missing_video",
        "misfit.mp4": "bad_truth",
        "never.mp4": "object_not_seen",
        "twice.mkv": "ambiguous",
        "twice.mp4": "ambiguous",
    }
    for limit, share in ((0.3, "40.0%"), (0.5, "70.0%")):  # at the start; after the videos were read
        assert main([*arguments, f"data.max_left_out_share={limit}"]) == 2
        told = capsys.readouterr()
        assert f"{share} of the samples were left out, more than data.max_left_out_share={limit}" in told.err
        assert "| tube |" not in told.out


@pytest.mark.parametrize("content", [b"PK\3\4", b"not a zip", b"", b"\x93NUMPY"])
def test_a_truth_that_cannot_be_read_is_a_reason(folder: Path, tmp_path: Path, content: bytes) -> None:
    for name, data in (("a.masks.npz", content), ("b.boxes.json", content), ("c/0.png", content)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DecodeError, match="bad_truth"):
            list(clips(folder / "boxes.mp4", tmp_path / name.removesuffix("/0.png"), 1, SAMPLING))


@pytest.mark.parametrize(
    ("content", "words"),
    [('["a"]', "wanted a JSON object"), ("{", "not valid JSON"), ("[" * 2000, "brackets in brackets")],
)
def test_captions_that_are_none_are_refused(folder: Path, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=rf"--captions .*c.json: .*{words}"):
        find(folder, folder, tmp_path / "c.json")
    (tmp_path / "c.json").write_text('{"boxes": [], "packed": [null, "a"], "alone": 3}')
    assert find(folder, folder, tmp_path / "c.json").captions == {"packed": "a"}


def test_mistakes_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["--masks", str(tmp_path / "empty")], "none of the 4 videos"),
        (["--recipes", "motion_guide"], "did you mean motion_guided"),
        (["--recipes", "text_guided"], "needs guidance.towers"),
        (["--clips", "0"], "--clips 0: wanted at least 1"),
        (["--captions", "nowhere.json"], "--captions nowhere.json: no such file"),
        (["data.stride=0"], "data.stride"),
    ):
        assert main(["--videos", str(folder), *arguments]) == 2
        assert message in capsys.readouterr().err
