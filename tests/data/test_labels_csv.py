"""A folder with a labels.csv is a data set: which rows each part reads, and what is wrong with it, by the line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tgm_scale import cli
from tgm_scale.assembly.corpora import inventories, open_corpora
from tgm_scale.config import Config, apply_overrides, checked, load
from tgm_scale.data.lists.reading import Selection
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.evaluation.labelled import LabelledCorpus, labelled_inventory, open_labelled
from tgm_scale.evaluation.online import Neighbours, knn_selection
from tgm_scale.evaluation.retrieve import captioned
from tgm_scale.evaluation.session import open_split
from tgm_scale.evaluation.settings import FrozenConfig, LabelledConfig
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.training.pretraining import _labelled_data

SPLIT = (
    "file,label,split,group,caption\na.mp4,x,train,1,one\nb.mp4,y,train,2,two\nc.mp4,x,val,3,three\n"
    "d.mp4,y,test,4,four\n"
)
FILES = ("a.mp4", "b.mp4", "c.mp4", "d.mp4")


def folder(root: Path, text: str | bytes, *names: str) -> str:
    """A folder with this labels.csv and these files, which are empty: nothing is decoded here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(root)


def config(shards: str, *overrides: str) -> Config:
    tree: dict[str, Any] = {
        "run": {"dir": "-"},
        "data": {"shards": shards},
        "masking": {"recipe": "tube", "mask_ratio": 0.6},
        "objective": {"contrastive_weight": 0.0},
        "train": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
    }
    return checked(apply_overrides(tree, list(overrides)), "here", Config, list(overrides))


def parts(place: str, **keys: Any) -> tuple[LabelledCorpus, LabelledCorpus]:
    data = LabelledConfig(train=place, test=place, **keys)
    return open_split(data, "train"), open_split(data, "test")


def test_each_part_reads_the_rows_of_its_split(tmp_path: Path) -> None:
    place = folder(tmp_path / "gestures", SPLIT, *FILES)
    train, test = parts(place)
    assert (train.labels, test.labels) == ({"a.mp4": "x", "b.mp4": "y"}, {"d.mp4": "y"})
    assert train.groups == {"a.mp4": "1", "b.mp4": "2"} and train.corpus.name == "gestures"
    assert len(open_corpus(place, selection=Selection("all", "caption"))) == 4
    [pretraining] = open_corpora(config(place).data, captions=True)
    assert [ref.name for ref in pretraining.refs] == ["a.mp4", "b.mp4"]
    assert json.loads(pretraining.read(pretraining.sample(1, 0), ["json"])["json"])["captions"] == ["two"]


def test_the_groups_of_the_test_are_named_or_drawn(tmp_path: Path) -> None:
    rows = [f"{n}.mp4,{n % 3},s{n % 10}" for n in range(40)]
    place = folder(tmp_path, "\n".join(["file,label,speaker", *rows]), *(f"{n}.mp4" for n in range(40)))
    for groups, count in ((("s2", "s4"), 2), (0.2, 2), (0.5, 5), (0.01, 1), (0.99, 9)):
        train, test = parts(place, group="speaker", test_groups=groups)
        tested = set(test.groups.values())
        assert len(tested) == count and not tested & set(train.groups.values()) and len(train.refs) == 40 - 4 * count
        assert not isinstance(groups, tuple) or tested == set(groups)
    # a drawn share depends on the groups alone: not on the order of the rows, nor on how many there are
    drawn = set(parts(place, group="speaker", test_groups=0.3)[1].groups.values())
    folder(tmp_path, "\n".join(["file,label,speaker", *reversed(rows[:30])]))
    assert set(parts(place, group="speaker", test_groups=0.3)[1].groups.values()) == drawn
    # a pretraining leaves the groups of the test out, and its nearest neighbours test on them
    keys = ("data.group=speaker", "data.test_groups=[s1]", f"knn.train={place}", f"knn.test={place}")
    found = config(place, *keys)
    [corpus] = open_corpora(found.data, captions=False)
    assert len(corpus) == 27
    assert set(open_labelled(place, knn_selection(found, "test")).groups.values()) == {"s1"}
    assert config(place, "data.test_groups=2").data.test_groups == ("2",)


def test_nearest_neighbours_of_a_pretraining_refuse_one_folder_for_both_parts(tmp_path: Path) -> None:
    place = folder(tmp_path, "file,label,group\na.mp4,x,1\nb.mp4,y,2\n", "a.mp4", "b.mp4")
    found = config(place, f"knn.train={place}", f"knn.test={place}")
    with pytest.raises(ValueError, match=r"knn.test=.*both parts would be the same clips: .* set data.test_groups"):
        Neighbours(found, HostCollectives(ProcessInfo(0, 1, 0, torch.device("cpu")), 60.0))


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("file,label,group\na.mp4,x,1\nb.mp4,y,2\n", {}, "labels.csv there has no column split .* data.test_groups"),
        ("file,label,split\na.mp4,x,fold1\nb.mp4,y,fold1\n", {}, "labels.csv there has no column split"),
        ("file,label,split\na.mp4,x,train\nb.mp4,y,dev\n", {}, "line 3: its split is 'dev': wanted train, val"),
        (SPLIT, {"test_groups": ("1",)}, "column split that says 'test', 'train', 'val': leave one of them out"),
        ("file,label,group\na.mp4,x,1\nb.mp4,y,2\n", {"test_groups": ("1", "7")},
         r"data.test_groups=\[1, 7\]: no row is of group '7'; there are '1', '2'"),
        ("file,label,group\na.mp4,x,1\nb.mp4,y,2\n", {"test_groups": ("1", "2")}, "none is left to learn from"),
        ("file,label,group\na.mp4,x,1\nb.mp4,y,1\n", {"test_groups": 0.5}, "have one group, '1': data.group=group"),
        ("file,label,group\na.mp4,x,1\n", {"group": "subject"}, "data.group=subject: no such column"),
        ("file,label\na.mp4,x\n", {"label": "action"}, "data.label=action: no such column; there are file, label"),
        ("file,caption\na.mp4,x\n", {}, "columns file, caption: none is a label"),
        ("label,split\nx,train\n", {}, "none is a file"),
        ("file,label,split\n", {}, "lists no video: an empty list"),
        ("file,label,split,group\na.mp4,x,train,1\na.mp4,x,train,2\n", {},
         "line 3: 'a.mp4' is of group '2', and at .*labels.csv line 2 of '1': a video has one group"),
        ("file,label,split\na.mp4,x,train\na.mp4,y,train\nb.mp4,y,test\n", {}, "line 3: 'a.mp4' has another label"),
        ("file,label,split\n../a.mp4,x,train\n/b.mp4,y,train\nhttps://x/c.mp4,y,train\nd.mp4,x,test\n", {},
         r"lists no video \(.*labels.csv line 2: not below the folder; .* name the list itself"),
        ('file,label,split\na.mp4,"x,train\n' + "b.mp4,y,test\n" * 60, {}, "line 2: no CSV .unexpected end"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, keys: dict[str, Any], message: str) -> None:
    place = folder(tmp_path, text, *FILES)
    with pytest.raises(ValueError, match=message):
        parts(place, **keys)


def test_what_is_left_out_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [
        "file,label,split,caption",
        'a.mp4,x,train,"one, and a comma"',  # line 2
        "gone.mp4,x,train,",
        "b.mp4,,train,no label",
        "a.mp4,x,train,one, with one field too many",
        "../elsewhere.mp4,x,train,",
        ",x,train,no file",
        "c.mp4,x,,no split",
        "a.mp4,x,train,another caption",
        "./a.mp4,x,train,another caption",
        "notes.md,x,train,",
        "d.mp4,x,test,",
    ]
    (tmp_path / "set").mkdir()
    (tmp_path / "elsewhere.mp4").touch()
    place = folder(tmp_path / "set", "\n".join(rows), *FILES, "notes.md")
    train = parts(place)[0]
    assert train.labels == {"a.mp4": "x"}
    found = {(p.reason, int(re.findall(r"labels\.csv line (\d+)", p.detail)[0])) for p in train.problems}
    assert found == {
        ("missing_video", 3), ("no_label", 4), ("bad_row", 5), ("outside_folder", 6), ("bad_row", 7), ("bad_row", 8),
        ("duplicate_row", 10), ("not_a_video", 11),
    }  # fmt: skip
    assert train.corpus.lost == 6, "no_label is no fault of the corpus, and a duplicate loses nothing"
    [captions] = [json.loads(train.corpus.read(ref, ["json"])["json"])["captions"] for ref in train.refs]
    assert captions == ["one, and a comma", "another caption"]
    by_name = open_labelled(f"{place}/labels.csv")  # the list itself may name videos elsewhere
    assert "../elsewhere.mp4" in by_name.labels and by_name.corpus.name == "labels.csv"


def test_a_sample_whose_only_label_cannot_be_used_has_none(tmp_path: Path) -> None:
    rows = ["file,label,caption", "a.mp4,x,one", "b.mp4,\x02,two", "c.mp4,\x02,\x01", "c.mp4,y,", "d.mp4,,\x01"]
    place = folder(tmp_path / "set", "\n".join(rows), *FILES)
    found = open_labelled(f"{place}/labels.csv")
    assert found.labels == {"a.mp4": "x", "c.mp4": "y"}
    assert [ref.name for ref in found.corpus.refs] == ["a.mp4", "c.mp4"], "the others are not drawn"
    told = {(one.key, one.reason): one.detail for one in found.problems if one.reason != "bad_caption"}
    assert set(told) == {("c.mp4", "bad_label"), ("b.mp4", "no_label"), ("d.mp4", "no_label")}
    assert "line 3: " in told["b.mp4", "no_label"] and told["d.mp4", "no_label"].endswith("line 6")
    assert labelled_inventory("train", found).share == 0.5
    tree = {"run": {"dir": "r"}, "encoder": {"checkpoint": "random"}, "data": {"test": f"{place}/labels.csv"}}
    read = captioned(checked(tree, "here", FrozenConfig))
    assert {(one.key, one.reason) for one in read.problems if "caption" in one.reason} == {
        ("c.mp4", "no_caption"), ("d.mp4", "no_caption")
    }  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_write_is_read(tmp_path: Path, encoding: str) -> None:
    text = 'file;label;split\r\n"with blank; and mark.mp4";Maß;train\r\n日本/é.mp4;y;train\r\nb.mp4;y;test\r\n'
    names = ("with blank; and mark.mp4", unicodedata.normalize("NFD", "日本/é.mp4"), "b.mp4")
    place = folder(tmp_path, text.encode(encoding), *names)
    train, _ = parts(place)
    assert train.labels == {"with blank; and mark.mp4": "Maß", "日本/é.mp4": "y"} and not train.problems


def test_a_folder_of_shards_and_labels_is_not_guessed_at(tmp_path: Path) -> None:
    place = folder(tmp_path, SPLIT, *FILES, "0.tar")
    with pytest.raises(ValueError, match=r"holds labels.csv and shards \(0.tar\): name .*/labels.csv or .*/\*.tar"):
        open_corpus(place)
    (tmp_path / "labels.csv").rename(tmp_path / "other.csv")
    with pytest.raises(ValueError, match=r"data.test_groups needs a list with groups, or a folder with labels.csv"):
        parts(str(tmp_path / "0.tar"), test_groups=0.5)
    with pytest.raises(ValueError, match=r"data.test_groups divides one list, and data.train=a is not data.test=b"):
        LabelledConfig(train="a", test="b", test_groups=0.5)
    for wrong in (1.5, 0.0, ()):
        with pytest.raises(ValueError, match="wanted a share above 0 and below 1, or a list of groups"):
            LabelledConfig(train="a", test="a", test_groups=wrong)


def test_the_real_sets_are_read_as_they_lie(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every set of the real material with a labels.csv, and a command on one of them."""
    train, test = parts(str(real / "weizmann"), group="performer")
    assert (len(train.refs), len(test.refs), len(set(train.groups.values()))) == (48, 24, 6)
    for ref in train.refs[:2]:
        assert (real / "weizmann" / ref.key).read_bytes() == train.corpus.read(ref, ["mp4"])["mp4"]
    even = ("2", "4", "6", "8")
    train, test = parts(str(real / "utd_mhad"), test_groups=even)
    assert (len(train.refs), len(test.refs), set(test.groups.values())) == (431, 430, set(even))
    assert Counter(p.reason for p in [*train.problems, *test.problems]) == {"missing_video": 160}
    train, test = parts(str(real / "miracl_lips"), test_groups=0.2)
    assert (len(train.refs), len(test.refs), len(set(test.groups.values()))) == (2400, 600, 3)
    assert cli.main(["shards", "check", "--shards", str(real / "weizmann"), "--samples", "4"]) == 0
    assert "weizmann: 72 usable (columns file, caption, label, split" in capsys.readouterr().out


def test_rows_without_a_caption_are_counted_as_a_list_is_opened(real: Path, tmp_path: Path) -> None:
    head, *rows = (real / "weizmann/labels.csv").read_text().splitlines()
    bare = [row.replace(row.split(",")[2], "") if number % 3 else row for number, row in enumerate(rows)]
    (tmp_path / "bare.csv").write_text("\n".join([head, *bare]))
    config = load("debug", [f"data.shards={tmp_path / 'bare.csv'}", f"data.root={real / 'weizmann'}"])
    (inventory,) = inventories(open_corpora(config.data, captions=False))
    lacking = sum(",," in row and ",train," in row for row in bare)
    assert inventory.usable == 48 and 0 < lacking < 48
    assert f"; {lacking} of 48 without a caption)" in inventory.lines()[0]


def test_a_run_on_a_folder_with_labels_says_how_it_is_judged_there(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a command that a shell takes as it stands, whatever the folders are called and wherever the videos lie."""
    (labels := tmp_path / "my clips #1").mkdir()
    shutil.copy(real / "weizmann/labels.csv", labels)
    given = [f"data.shards='{labels}'", f"data.root={real}/weizmann", f"run.dir='{tmp_path}/my run #1'"]
    few = ["train.steps=1", "train.global_batch_size=4", "train.micro_batch_size=4", "data.workers=0"]
    assert cli.main(["pretrain", "--config", "debug", *given, *few]) == 0
    _, _, said = capsys.readouterr().out.rstrip().rpartition(" judged by: tgm-scale ")
    command, *keys = shlex.split(said)
    assert command == "probe" and f'encoder.checkpoint="{tmp_path}/my run #1"' in keys
    assert cli.main(["knn", *keys, "data.workers=0"]) == 0


def test_a_folder_of_which_no_test_clip_has_a_label_judges_nothing(real: Path, tmp_path: Path) -> None:
    head, *rows = (real / "weizmann/labels.csv").read_text().splitlines()
    assert head.startswith("file,label,")
    without = [",".join([row.split(",")[0], "", *row.split(",")[2:]]) if ",test," in row else row for row in rows]
    for name, of in (("whole", rows), ("without", without)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.csv").write_text("\n".join([head, *of]))
        data = load("debug", [f"data.shards={tmp_path / name}", f"data.root={real / 'weizmann'}"]).data
        said = _labelled_data(data, open_corpora(data, captions=True)[0])
        assert said.startswith(f"data.train={tmp_path / name} " if name == "whole" else "data.train=YOUR_TRAIN.csv ")
