"""Names are identities: whatever is opened together, and however, no two samples share a name, a seed or a clip id."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from loading import clip_loader
from tars import write_tar

from tgm_scale.assembly.corpora import open_corpora
from tgm_scale.config import from_tree
from tgm_scale.contracts import Grid
from tgm_scale.data.access.addresses import distinct_names
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.opening import make_names_distinct, open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.evaluation.labelled import open_labelled


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one tool: part0 and part1 have the same shards with the same keys, and lists of the same files."""
    root = tmp_path_factory.mktemp("parts")
    for part, shard in itertools.product(range(2), range(2)):
        folder = root / f"part{part}"
        folder.mkdir(exist_ok=True)
        members = []
        for row in range(2):
            noise = np.random.default_rng([part, shard, row]).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
            video = encode_video(noise, fps=25)
            content = {"caption": f"part {part} shard {shard} row {row}", "label": f"class {part}"}
            members += [(f"00{row}.mp4", video), (f"00{row}.json", json.dumps(content).encode())]
            (folder / f"{shard}{row}.mp4").write_bytes(video)
        write_tar(folder / f"0000{shard}.tar", members)
        (folder / "list.txt").write_text("".join(f"{n}.mp4 clip {part} {n}\n" for n in ("00", "01", "10", "11")))
    return root


def clips(corpora: list[Corpus]) -> list[tuple[str, int, int, str]]:
    """(name, clip id, seed, caption) of one epoch."""
    samples = sum(map(len, corpora))
    loader = clip_loader(
        corpora, frames=2, stride=1, size=8, grid=Grid.of(2, 8, 2, 4), seed=0, global_batch_size=samples,
        micro_batch_size=samples, rank=0, world_size=1, workers=0, stop_step=1,
    )  # fmt: skip
    _, [batch] = next(iter(loader))
    assert not batch.problems
    return list(zip(batch.keys, batch.clip_ids.tolist(), batch.seeds.tolist(), batch.captions))


SPECS = {
    "a glob over folders": ["{root}/part*/*.tar"],
    "a brace pattern": ["{root}/part{{0,1}}/0000{{0,1}}.tar"],
    "several corpora": ["{root}/part0", "{root}/part1"],
    "corpora of one name": ["{root}/part0", "{root}/copy/part0"],
    "the same corpus twice": ["{root}/part0", "{root}/part0"],
    "lists of the same paths": ["{root}/part0/list.txt", "{root}/part1/list.txt"],
    "shards and lists": ["{root}/part1", "{root}/part1/list.txt", "{root}/part0/list.txt"],
    "all at once": ["{root}/part*/*.tar", "{root}/part1", "{root}/part1/list.txt", "{root}/part0/list.txt"],
}


@pytest.mark.parametrize("specs", SPECS.values(), ids=SPECS)
def test_no_two_samples_share_a_name_a_seed_or_a_clip_id(parts: Path, specs: list[str]) -> None:
    if not (parts / "copy").exists():
        shutil.copytree(parts / "part0", parts / "copy/part0")
    tree = {
        "run": {"dir": "-"},
        "data": {"shards": [spec.format(root=parts) for spec in specs]},
        "objective": {"contrastive_weight": 0.0},
        "train": {"steps": 1},
    }
    opened = open_corpora(from_tree(tree).data, captions=False)
    found = clips(opened)
    assert len(found) == sum(map(len, opened)) >= 8
    for what, column in zip(("names", "clip ids", "seeds"), zip(*found)):
        assert len(set(column)) == len(found), what


def test_unambiguous_names_stay_and_others_take_as_much_of_the_path_as_they_need(parts: Path) -> None:
    assert distinct_names(["/x/a/0.tar", "/x/b/1.tar"]) == ["0", "1"]
    assert distinct_names(["/x/a/0.tar", "/x/b/0.tar", "/x/b/1.tar"]) == ["a:0", "b:0", "1"]
    assert distinct_names(["x/a/s/0.tar", "x/b/s/0.tar"]) == ["a:s:0", "b:s:0"]
    assert distinct_names(["0.tar", "a/0.tar"]) == ["0", "a:0"]
    odd = distinct_names(["/a:b/0.tar", "/a/b/0.tar", "/b/0.tar", "http://h/b/0.tar"])
    assert len(set(odd)) == 4 and not any("/" in name for name in odd)
    assert [ref.name for ref in open_corpus(f"{parts}/part0").refs] == [
        "00000/000",
        "00000/001",
        "00001/000",
        "00001/001",
    ]
    names = [ref.name for ref in open_corpus(f"{parts}/part*/*.tar").refs]
    assert names[0] == "part0:00000/000" and names[-1] == "part1:00001/001"


def test_a_corpus_keeps_seeds_and_clip_ids_when_another_joins_it(parts: Path) -> None:
    """So that runs go on whose corpora have shards, but no samples, of the same names."""
    alone = {caption: (ids, seed) for _, ids, seed, caption in clips([open_corpus(f"{parts}/part0")])}
    both = [open_corpus(f"{parts}/part{part}") for part in range(2)]
    make_names_distinct(both)
    joined = {caption: (name, ids, seed) for name, ids, seed, caption in clips(both)}
    assert {caption: joined[caption][1:] for caption in alone} == alone
    assert joined["part 1 shard 0 row 1"][0] == "part1:00000/001"


def test_labels_do_not_overwrite_one_another(parts: Path) -> None:
    found = open_labelled([f"{parts}/part0", f"{parts}/part1"])
    assert len(found.refs) == len(found.labels) == 8
    assert sorted(found.labels.values()) == ["class 0"] * 4 + ["class 1"] * 4
    assert found.labels["part1:00000/000"] == "class 1"


def test_a_shard_behind_a_link_is_the_same_shard(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "link.tar").symlink_to(parts / "part0/00000.tar")
    with pytest.raises(ValueError, match="named twice"):
        open_corpus([str(tmp_path / "link.tar"), f"{parts}/part0/00000.tar"])


def test_a_name_that_is_no_utf8_can_be_written_everywhere(tmp_path: Path) -> None:
    corpus = open_corpus(write_tar(tmp_path / "0.tar", [("caf\udce9.mp4", b"video"), ("caf\udce8.mp4", b"video")]))
    names = [ref.name for ref in corpus.refs]
    assert names == ["0/caf\\udce9", "0/caf\\udce8"]
    assert [name.encode() for name in names]


KEYS = [
    "train.v1/clip0",
    "/clips/clip1",
    "../clip2",
    "./clip3",
    "a/..b/clip 4",
    "\u6f22/clip5",
    "e\x1b[31m\u2028\u202e6",
]


def test_what_is_read_can_be_written_and_is_read_back(tmp_path: Path) -> None:
    """One rule for keys: tools that copy shards take all that is trained on."""
    corpus = open_corpus(write_tar(tmp_path / "0.tar", [(f"{key}.mp4", key.encode()) for key in KEYS]))
    refs = [corpus.sample(0, row) for row in range(len(corpus))]
    assert [ref.key for ref in refs] == [*KEYS[:-1], r"e\x1b[31m\u2028\u202e6"] and not corpus.left_out
    with ShardWriter(tmp_path / "copy") as writer:
        for ref in refs:
            writer.write(ref.key, dict(corpus.read(ref, ["mp4"])))
    copy = open_corpus(tmp_path / "copy")
    again = [copy.sample(0, row) for row in range(len(copy))]
    assert [ref.key for ref in again] == [ref.key for ref in refs]
    assert [copy.read(ref, ["mp4"])["mp4"].decode() for ref in again] == KEYS
