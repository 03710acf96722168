"""`tgm-scale shards cache`: the maps that it leaves in shards are the online ones, and the loader reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from loading import clip_loader
from torch import Tensor

from tgm_scale import cli
from tgm_scale.assembly.corpora import open_corpora
from tgm_scale.assembly.parts import clip_loader as run_loader
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.config import apply_overrides, from_tree
from tgm_scale.contracts import Grid
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.guidance.cache import RelevanceCache, fingerprint
from tgm_scale.guidance.maps import Relevance
from tgm_scale.guidance.towers import load_image_tower, load_text_tower
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training.introduction import introduce

GRID = Grid(2, 6, 6)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five clips of 48 x 48 pixels at 20 frames a second in three shards; one is broken."""
    smooth = torch.randint(0, 256, (5, 3, 6, 3, 3), generator=torch.Generator().manual_seed(1)).float()
    videos = torch.nn.functional.interpolate(smooth, (6, 48, 48), mode="trilinear").byte().permute(0, 2, 3, 4, 1)
    with ShardWriter(tmp_path / "plain", clips_per_shard=2) as writer:
        for number, video in enumerate(videos.numpy()):
            data = encode_video(video, fps=20, crf=0) if number != 2 else b"not a video"
            writer.write(f"clip{number}", {"mp4": data, "json": {"captions": [f"caption {number}", "another"]}})
    return tmp_path / "plain"


def run(*arguments: str | Path) -> int:
    return cli.main(["shards", "cache", *map(str, arguments)])


def load(folder: Path, towers: Path, scorer: str, one_of: int = 1) -> list:
    loader = clip_loader(
        [open_corpus(str(folder))],
        frames=4,
        stride=1,
        size=48,
        grid=GRID,
        seed=0,
        global_batch_size=5,
        micro_batch_size=5,
        rank=0,
        world_size=1,
        workers=0,
        stop_step=1,
        crop="center",
        relevance=RelevanceCache(fingerprint(towers, scorer, None), one_of).read,
    )
    return next(iter(loader))[1]


def test_cached_maps_are_the_online_ones(
    shards: Path, clip_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scored"
    command = ("--shards", shards, "--towers", clip_source, "--output", output, "--every", "0.05")
    assert run(*command) == 0
    assert "4 clips scored, 1 clips not decoded (not_a_video)" in capsys.readouterr().out
    [batch] = load(output, clip_source, "value")
    assert [problem.reason for problem in batch.problems] == ["not_a_video"]
    whole = batch.weight > 0
    text = load_text_tower(clip_source).encode(batch.captions)
    online: Tensor = Relevance(load_image_tower(clip_source))(batch.video, text, GRID)
    assert batch.relevance is not None and online[whole].std() > 0.05
    torch.testing.assert_close(batch.relevance[whole], online[whole], rtol=0, atol=2e-3)
    [batch] = load(output, clip_source, "value", one_of=2)  # the same maps serve guidance.frames_per_tubelet=one
    middle: Tensor = Relevance(load_image_tower(clip_source), "value", "one")(batch.video, text, GRID)
    assert batch.relevance is not None and (middle - online)[whole].abs().max() > 4e-3
    torch.testing.assert_close(batch.relevance[whole], middle[whole], rtol=0, atol=2e-3)

    (output / "00001.tar").unlink()
    before = (output / "00002.tar").stat().st_mtime_ns
    assert run(*command) == 0  # goes on with what is missing
    assert (output / "00002.tar").stat().st_mtime_ns == before
    assert len(open_corpus(str(output))) == 5


def test_what_was_left_out_is_said_and_stops_it(
    shards: Path, clip_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scored"
    (shards / "00001.tar").write_bytes(b"<html>")
    command = ("--shards", shards, "--towers", clip_source, "--output", output)
    assert run(*command) == 2
    assert "left out, more than --max-left-out=0.3" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["left_out.jsonl"]
    assert run(*command, "--max-left-out", "0.6") == 0
    said = capsys.readouterr().out
    assert f"(all named in {output / 'left_out.jsonl'}):\n    shard_unreadable: 1 (00001: " in said
    assert '"reason": "shard_unreadable"' in (output / "left_out.jsonl").read_text()


def test_captions_beyond_the_towers_tokens_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here they are read: a run with guidance.cached and no contrast has no text tower that could tell."""
    video = encode_video(np.zeros((4, 48, 48, 3), np.uint8), fps=20, crf=0)
    with ShardWriter(tmp_path / "plain", clips_per_shard=2) as writer:
        for number, caption in enumerate(("a red square", "a red square moving " * 60)):
            writer.write(f"clip{number}", {"mp4": video, "json": {"captions": [caption]}})
    assert run("--shards", tmp_path / "plain", "--towers", "small", "--output", tmp_path / "scored") == 0
    said = capsys.readouterr().out
    assert "warning: 1 of 2 captions looked at have more tokens than the text tower takes" in said


def test_the_packaged_towers_are_taken_and_the_way_on_is_said(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the overrides that the last line gives, training reads what was written."""
    output = tmp_path / "scored"
    assert run("--shards", shards, "--towers", "small", "--output", output, "--scorer", "raw") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    way = f"data.shards={output} guidance.cached=true guidance.towers=small guidance.scorer=raw"
    assert last == f"train on them with: {way}"
    given = ["model.size=tiny", "data.size=64", "data.frames=4", "data.stride=1", "data.workers=0", "train.steps=1"]
    tree = {
        "run": {"dir": str(tmp_path)},
        "masking": {"recipe": "text_guided"},
        "objective": {"contrastive_weight": 0},
    }
    made = from_tree(apply_overrides(tree, [*given, *way.split()]))
    plan = plan_pretraining(made, ProcessInfo(0, 1, 0, torch.device("cpu")))
    loader = run_loader(plan, made.data, made.guidance, made.run.seed, open_corpora(made.data, True), range(1))
    batches = [batch for _, step in loader for batch in step]
    assert {problem.reason for batch in batches for problem in batch.problems} == {"not_a_video"}
    assert all(batch.relevance is not None for batch in batches)
    introduce(tmp_path, open_corpora(made.data, True), scored_anew=False)
    assert "maps of relevance" not in capsys.readouterr().out
    anew = from_tree(apply_overrides(made.model_dump(), ["guidance.cached=false"]))
    introduce(tmp_path, open_corpora(anew.data, True), scored_anew=True)
    assert "scored: has maps of relevance that are not used: guidance.cached=true reads" in capsys.readouterr().out
    introduce(tmp_path, [open_corpus(shards)], scored_anew=True)
    assert "maps of relevance" not in capsys.readouterr().out


def test_maps_that_a_sample_had_are_not_kept(
    clip_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may be of other captions, and their fingerprint would stop a run that this very tool prepared."""
    with ShardWriter(tmp_path / "old") as writer:
        for key, video, captions in (("a", b"not a video", ["one"]), ("b", b"not a video", [])):
            writer.write(key, {"mp4": video, "json": {"captions": captions}, "tgm.npy": b"old"})
    assert run("--shards", tmp_path / "old", "--towers", clip_source, "--output", tmp_path / "new") == 0
    assert "1 clips not decoded (not_a_video), 1 clips without a caption" in capsys.readouterr().out
    corpus = open_corpus(str(tmp_path / "new"))
    assert [set(corpus.sample(0, row).members) for row in range(2)] == [{"mp4", "json"}] * 2


@pytest.mark.parametrize("name", ["list.csv", ""])
def test_files_have_no_place_for_maps(
    clip_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").touch()
    (tmp_path / "videos/list.csv").write_text("file,caption\na.mp4,one\n")
    assert run("--shards", tmp_path / "videos" / name, "--towers", clip_source, "--output", tmp_path / "new") == 2
    assert "video files, and a map needs a shard" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_tasks_side_by_side_make_the_shards_of_one(
    shards: Path, clip_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("--shards", shards, "--towers", clip_source, "--every", "0.1")
    assert run(*command, "--output", tmp_path / "one") == 0
    capsys.readouterr()
    for task, mine, finished in ((1, 1, 1), (0, 2, 3)):
        assert run(*command, "--output", tmp_path / "two", "--task", str(task), "--tasks", "2") == 0
        said = capsys.readouterr().out
        assert f"5 clips in 3 shards; {mine} of this task's {mine} are to be made" in said
        assert f"{finished} of 3 shards finished" in said
    for number in range(3):
        name = f"{number:05d}.tar"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_maps_of_another_scorer_stop_the_run(shards: Path, clip_source: Path, tmp_path: Path) -> None:
    output = tmp_path / "scored"
    assert run("--shards", shards, "--towers", clip_source, "--output", output, "--scorer", "raw") == 0
    with pytest.raises(ValueError, match=r"made with other towers or settings"):
        load(output, clip_source, "value")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--output": "plain"}, "is the folder of the shards"),
        ({"--every": "0"}, "--every 0.0: wanted seconds above 0"),
        ({"--task": "2"}, "--task 2 of --tasks 1: wanted 0 to 0"),
        ({"--scorer": "val"}, "--scorer=val: wanted one of"),
        ({"--towers": "nowhere"}, "/nowhere: no such folder"),
        ({"--resolution": "3"}, "--resolution=3 is not a multiple of the tower's patch"),
    ],
)
def test_a_mistake_is_named(
    shards: Path,
    clip_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    options = {"--shards": shards, "--towers": clip_source, "--output": tmp_path / "scored"}
    options |= {name: tmp_path / value if name in options else value for name, value in changes.items()}
    assert run(*(part for option in options.items() for part in option)) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("tgm-scale shards cache: ") and error.count("\n") == 1
    assert "guidance." not in error
