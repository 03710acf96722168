"""What was left out is said wherever data is opened, counted by what was lost, and stops a run above a share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tars import make_corpus

from tgm_scale.assembly.corpora import corpus_metadata, open_corpora
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.config import apply_overrides, from_tree
from tgm_scale.contracts import Problem
from tgm_scale.data.shards.inventory import Inventory, corpus_inventory
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.guidance.towers import load_text_tower, tower_folder
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training.introduction import introduce, warn_of_one_caption

ALONE = ProcessInfo(0, 1, 0, torch.device("cpu"))


def config(folder: Path, **data: object):
    tree = {
        "run": {"dir": "-"},
        "data": {"shards": str(folder)} | data,
        "objective": {"contrastive_weight": 0.0},
        "train": {"steps": 1},
    }
    return from_tree(tree)


def test_a_lost_shard_counts_as_what_the_others_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_corpus(tmp_path / "c", [10, 10, 10, 10])
    (folder / "00001.tar").write_bytes(b"<html>")
    corpus = open_corpus(folder)
    inventory = corpus_inventory("data", corpus)
    assert (inventory.usable, inventory.left_out, inventory.share) == (30, {"shard_unreadable": 1}, 0.25)
    assert inventory.examples[0] == "00000/0_0000: 'caption 0 0'"
    introduce(tmp_path, open_corpora(config(folder).data, captions=False))
    said = capsys.readouterr().out
    assert "c: 30 usable" in said and "left out, 25.00% (all named in left_out.jsonl of the run):" in said
    (line,) = (tmp_path / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "00001" and "00001.tar" in json.loads(line)["detail"]
    (facts,) = corpus_metadata([corpus])
    assert facts["left_out"] == {"shard_unreadable": 1} and facts["left_out_share"] == 0.25

    cut = folder / "00002.tar"
    cut.write_bytes(cut.read_bytes()[: len(cut.read_bytes()) // 2])
    with pytest.raises(ValueError, match=r"left out, more than data.max_left_out_share=0.3:\n(.*\n)*.*shard_cut"):
        open_corpora(config(folder).data, captions=False)
    assert len(open_corpora(config(folder, max_left_out_share=1.0).data, captions=False)[0]) < 30


def test_what_was_left_out_is_read_once(tmp_path: Path) -> None:
    """It is asked for by the inventory, by the file that names all, and by the run's data.json."""
    folder = make_corpus(tmp_path / "c", [3, 3])
    (folder / "00001.tar").write_bytes(b"<html>")
    corpus = open_corpus(folder)
    first = list(corpus.all_problems())
    for path in folder.iterdir():
        path.unlink()
    assert list(corpus.all_problems()) == first and [problem.reason for problem in first] == ["shard_unreadable"]
    assert corpus_inventory("data", corpus, captions=False).left_out == {"shard_unreadable": 1}


def test_notices_are_no_losses() -> None:
    found = Inventory.of(
        "data", 9, [Problem("a", "no_video"), *(Problem(k, "duplicate_member", "x") for k in "bcdef")]
    )
    assert found.share == 0.1 and found.left_out == {"duplicate_member": 5, "no_video": 1}
    assert found.lines() == [
        "data: 9 usable",
        "  left out, 10.00%:",
        "    no_video: 1 (a)",
        "  noted, no sample is left out by it:",
        "    duplicate_member: 5 (b: x; c: x; d: x; ...)",
    ]  # fmt: skip
    noted = Inventory.of("data", 9, [Problem("b", "duplicate_row", "x")], listed="left_out.jsonl")
    assert noted.lines()[1] == "  noted, no sample is left out by it (all named in left_out.jsonl of the run):"


def test_a_corpus_without_captions_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for number in range(3):
        (tmp_path / "v" / f"{number}.mp4").touch()
        (tmp_path / "v" / f"{number}.txt").write_text("  ")
    settings = config(tmp_path / "v")
    assert len(open_corpora(settings.data, captions=False)[0]) == 3
    tube, contrast = "masking.recipe=tube", "objective.contrastive_weight=0"
    for given, missing in (
        (["masking.recipe=text_guided"], [tube]),
        (["objective.contrastive_weight=1"], [contrast]),
        (["objective.contrastive_weight=1", "masking.recipe=text_guided"], [contrast, tube]),
        (
            ["masking.recipe=text_guided", "masking.options={temperature: 1.0}"],
            [tube, "masking.options={}"],
        ),
        (
            ["objective.contrastive_weight=1", "objective.reconstruction_weight=0"],
            [contrast, "objective.reconstruction_weight=1"],
        ),
    ):
        tree = apply_overrides(settings.model_dump(), ["guidance.towers=small", *given])
        plan = plan_pretraining(from_tree(tree), ALONE)
        with pytest.raises(ValueError, match=r"none of 3 samples looked at has a caption \(0.mp4 is") as refused:
            open_corpora(settings.data, plan.captions, plan.without_captions)
        assert str(refused.value).endswith(f"to do without them add {' '.join(missing)}")
        assert not plan_pretraining(from_tree(apply_overrides(tree, missing)), ALONE).captions


@pytest.mark.parametrize(
    ("bare", "more", "refused"),
    [
        (3, {}, True),
        (1, {}, True),  # of 5, above 0.1
        (0, {}, False),
        (1, {"max_skipped_share": 0.2}, False),
        (5, {"max_skipped_share": 1.0}, False),
    ],
)
def test_clips_without_a_caption_are_counted_at_the_start(
    bare: int, more: dict[str, float], refused: bool, tmp_path: Path
) -> None:
    rows = [f"{number}.mp4,{'' if number < bare else f'caption {number}'}\n" for number in range(5)]
    (tmp_path / "list.csv").write_text("file,caption\n" + "".join(rows))
    for number in range(5):
        (tmp_path / f"{number}.mp4").touch()
    settings = config(tmp_path / "list.csv", **more)
    if not refused:
        open_corpora(settings.data, captions=True, without_captions=["masking.recipe=tube"])
        return
    with pytest.raises(
        ValueError,
        match=rf"{bare} of 5 clips without .* skip {bare / 5:g} of its",
    ):
        open_corpora(settings.data, captions=True, without_captions=["masking.recipe=tube"])
    open_corpora(settings.data, captions=False)


def test_clips_without_a_caption_count_by_the_weight_of_their_list(tmp_path: Path) -> None:
    for name, bare in (("half", 2), ("whole", 0)):
        (tmp_path / name).mkdir()
        rows = [f"{number}.mp4,{'' if number < bare else f'caption {number}'}\n" for number in range(4)]
        (tmp_path / name / "list.csv").write_text("file,caption\n" + "".join(rows))
        for number in range(4):
            (tmp_path / name / f"{number}.mp4").touch()

    def opened(weights: tuple[float, float]) -> None:
        paths = [str(tmp_path / name / "list.csv") for name in ("half", "whole")]
        parts = [{"path": path, "weight": weight} for path, weight in zip(paths, weights)]
        open_corpora(config(tmp_path, shards=parts).data, captions=True, without_captions=["masking.recipe=tube"])

    opened((0.1, 0.9))  # a twentieth of the samples
    with pytest.raises(ValueError, match=r"half.list.csv: 2 of 4 clips without a .* skip 0.25 of its samples"):
        opened((0.5, 0.5))
    few = [f"{number}.mp4,{'' if number < 3 else 'a caption'}\n" for number in range(40)]
    (tmp_path / "whole" / "list.csv").write_text("file,caption\n" + "".join(few))
    for number in range(40):
        (tmp_path / "whole" / f"{number}.mp4").touch()
    with pytest.raises(ValueError, match=r"half.list.csv: 2 of 4"):  # the other has more of them, of few samples
        opened((0.9, 0.1))


def test_a_caption_that_cannot_be_used_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,caption\n0.mp4,a\x07b\n1.mp4,a caption\n")
    for number in range(2):
        (tmp_path / f"{number}.mp4").touch()
    with pytest.raises(ValueError, match=r"1 of 2 clips .*0.mp4 has one that cannot be used: .*control char"):
        open_corpora(config(tmp_path / "list.csv").data, captions=True, without_captions=["masking.recipe=tube"])


@pytest.mark.parametrize(("captions", "one"), [(["a"], 1), (["a", "b"], 0), (["a", "a"], 1), (["A ", "a"], 1)])
def test_a_corpus_of_one_caption_is_warned_of(
    captions: list[str], one: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("file,caption\n" + "".join(f"{i}.mp4,{c}\n" for i, c in enumerate(captions)))
    for number in range(len(captions)):
        (tmp_path / f"{number}.mp4").touch()
    small = load_text_tower(tower_folder("small"))
    warn_of_one_caption([open_corpus(tmp_path / "list.csv")], "objective.contrastive_weight", small)
    said = capsys.readouterr().out
    assert said.startswith(f"warning: all {len(captions)} captioned samples looked at have one caption") == bool(one)
