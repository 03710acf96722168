"""Lists of video files: what their lines say, what is missing, and the same order as shards have."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from loading import clip_loader

from tgm_scale.contracts import Grid
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.inventory import corpus_inventory
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.video_list import VideoListCorpus
from tgm_scale.data.video.encode import cut_clip, encode_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine clips in three folders, as an action dataset has them."""
    root = tmp_path_factory.mktemp("dataset")
    for number in range(9):
        noise = np.random.default_rng(number).integers(0, 256, (6, 16, 20, 3)).astype(np.uint8)
        path = root / f"class {number % 3}" / f"-v_{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_video(noise, fps=25))
    return root


def write(root: Path, name: str, *lines: str) -> str:
    (root / name).write_text("\n".join(lines) + "\n")
    return str(root / name)


def said(corpus: Corpus) -> dict[str, tuple[list[str], str | None]]:
    found = {}
    for shard in range(len(corpus.shards)):
        ref = corpus.sample(shard, 0)
        content = json.loads(corpus.read(ref, ["json"])["json"])
        found[ref.name] = (content["captions"], content["label"])
    return found


def test_a_path_that_is_found_by_its_name_alone_is_told(videos: Path) -> None:
    corpus = open_corpus(
        write(videos, "names.csv", "file,caption", "class 0/-v_0.mp4,one", "-v_1.mp4,two", "-v_2,three")
    )
    told = next(line for line in corpus_inventory("data.shards", corpus).lines() if "usable" in line)
    assert f"; 2 of 3 paths found by name alone, such as -v_1.mp4 at {videos}/class 1/-v_1.mp4" in told
    whole = open_corpus(write(videos, "paths.csv", "file,caption", "class 0/-v_0.mp4,one"))
    assert "by name" not in "".join(corpus_inventory("data.shards", whole).lines())


def test_lines_of_all_the_usual_kinds(videos: Path) -> None:
    path = write(
        videos,
        "kinds.txt",
        "class 0/-v_0.mp4 a red ball rolls",
        "",
        "class 1/-v_1.mp4 7",
        "class 2/-v_2.mp4 0 -1 12",
        "class 0/-v_3.mp4\ta tab, a comma",
        '"class 1/-v_4.mp4","a caption, with ""quotes"""',
        "class 0/-v_0.mp4 it rolls 2 times",
        f"{videos}/class 2/-v_5.mp4,3",
        "class 0/-v_6.mp4",
        "class 0/gone.mp4 never downloaded",
        "nowhere/at/all.webm 1",
    )
    corpus = open_corpus(path)
    assert isinstance(corpus, VideoListCorpus) and len(corpus) == 7 and corpus.name == "kinds.txt"
    assert said(corpus) == {
        "class 0/-v_0.mp4": (["a red ball rolls", "it rolls 2 times"], None),
        "class 1/-v_1.mp4": ([], "7"),
        "class 2/-v_2.mp4": ([], "12"),
        "class 0/-v_3.mp4": (["a tab, a comma"], None),
        "class 1/-v_4.mp4": (['a caption, with "quotes"'], None),
        f"{videos}/class 2/-v_5.mp4": ([], "3"),
        "class 0/-v_6.mp4": ([], None),
    }
    assert corpus.left_out == {"missing_video": 2}
    assert [problem.key for problem in corpus.problems(0)] == ["class 0/gone.mp4", "nowhere/at/all.webm"]


def test_a_header_of_csv_is_no_video(videos: Path) -> None:
    assert list(said(open_corpus(write(videos, "h.csv", "path,caption", "class 0/-v_0.mp4,a ball")))) == [
        "class 0/-v_0.mp4"
    ]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["class 0/-v_0.mp4 fine", "class 0/-v_1 a ball"], r"bad.txt line 2.*class 0/-v_1 a ball.*mp4"),
        (["videos/a.mp4 a ball"], r"none of its 1 videos can be used .*videos/a.mp4"),
        ([""], "an empty list"),
        (["ssh://host/a.mp4 a ball"], "protocol 'ssh'"),
    ],
)
def test_a_mistaken_list_says_what_was_wanted(videos: Path, lines: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        open_corpus(write(videos, "bad.txt", *lines))
    with pytest.raises(ValueError, match="no such list"):
        open_corpus(str(videos / "absent.csv"))


def load(path: str, **changes: int) -> list[list[tuple]]:
    values = {"workers": 0, "rank": 0, "world_size": 1, "micro_batch_size": 6, "start_step": 0} | changes
    loader = clip_loader(
        [open_corpus(path)],
        frames=4,
        stride=1,
        size=8,
        grid=Grid.of(4, 8, 2, 4),
        seed=3,
        global_batch_size=6,
        stop_step=3,
        **values,  # type: ignore[arg-type]
    )
    return [
        [(k, c, int(s), float(w)) for b in batches for k, c, s, w in zip(b.keys, b.captions, b.seeds, b.weight)]
        for _, batches in loader
    ]


def test_a_list_goes_through_the_same_order(videos: Path) -> None:
    """Each file once an epoch, whatever the ranks, workers and start; a missing caption is the sample's problem."""
    lines = [f"class {n % 3}/-v_{n}.mp4" + (f" clip {n}" if n != 4 else " 4") for n in range(9)]
    path = write(videos, "list.txt", *lines)
    whole = load(path)
    first_epoch = [row for step in whole for row in step][:9]
    assert {row[0] for row in first_epoch} == {line.partition(".mp4")[0] + ".mp4" for line in lines}
    assert [row[3] for row in first_epoch] == [float("v_4" not in row[0]) for row in first_epoch]
    assert all(row[1] == f"clip {row[0][-5]}" for row in first_epoch if row[3])
    assert [row[0] for row in first_epoch] != sorted(row[0] for row in first_epoch)
    assert load(path, workers=2) == whole
    assert load(path, start_step=2) == whole[2:]
    ranks = [load(path, world_size=2, rank=rank, micro_batch_size=3) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks)] == whole


@pytest.mark.parametrize("name", ["newtonscradle.gif", "../videos/asl_again.mkv"])
def test_other_containers_are_read_and_cut(real: Path, tmp_path: Path, name: str) -> None:
    path = real / "edge" / name
    corpus = open_corpus(write(tmp_path, "one.txt", f"{path} a caption"))
    assert corpus.read(corpus.sample(0, 0), [corpus.sample(0, 0).video]) == {path.suffix[1:]: path.read_bytes()}
    assert cut_clip(str(path), Fraction(0), Fraction(1, 2)).frames > 3
