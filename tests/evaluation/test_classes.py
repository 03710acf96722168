"""Classes in order, classes that one part lacks, clips that both parts have: said, and refused where none is right."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tgm_scale import cli
from tgm_scale.checkpoints.folders import latest
from tgm_scale.data.video.encode import encode_video
from tgm_scale.evaluation.classes import (
    alike_note,
    in_order,
    missing_note,
    names_of,
    ordered,
    read_classes,
    single_class_note,
    untrained_classes,
    untrained_note,
)
from tgm_scale.evaluation.labelled import labelled_inventory, open_labelled, overlap_note
from tgm_scale.evaluation.settings import FinetuneConfig, load_finetune
from tgm_scale.finetuning import setup
from tgm_scale.runs import run_folder
from tgm_scale.runtime.distributed import HostCollectives, find_process


def prepared(config: FinetuneConfig) -> setup.Parts:
    process = find_process()
    return setup.prepare(config, setup.plan_finetuning(config, process), HostCollectives(process))


def test_numbers_sort_as_numbers() -> None:
    assert in_order(str(n) for n in range(12)) == [str(n) for n in range(12)]
    assert in_order(["b", "a10", "a2", "3"]) == ["3", "a10", "a2", "b"]


@pytest.mark.parametrize(
    ("name", "text", "labels", "wanted", "names"),
    [
        ("c.txt", "run\nbend\n", {"0", "1"}, ["0", "1"], ["run", "bend"]),
        ("c.txt", "run\nbend\nwave\n", {"wave", "run"}, ["run", "bend", "wave"], ["run", "bend", "wave"]),
        ("classInd.txt", "1 Bend\n2 A b\n", {"1"}, ["1", "2"], ["Bend", "A b"]),
        ("c.json", '["run", "bend"]', {"bend"}, ["run", "bend"], ["run", "bend"]),
        ("c.json", '{"k": ["kick", "a kick"], "r": "run"}', {"r"}, ["k", "r"], ["kick", "run"]),
        ("labels.json", '{"Holding it": "1", "Approaching it": "0"}', {"Holding it"}, ["Approaching it", "Holding it"],
         ["Approaching it", "Holding it"]),
    ],
)  # fmt: skip
def test_a_file_of_classes_gives_order_and_names(
    tmp_path: Path, name: str, text: str, labels: set[str], wanted: list[str], names: list[str]
) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert ordered(labels, str(file)) == wanted
    assert names_of(wanted, str(file)) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("3", "wanted names"),
        ('{"a": 3.5}', "'a' has 3.5: wanted a name"),
        ('{"a": "\\ud83d"}', r"half a surrogate pair"),
        ('{"a": "b"}', "no entry for 'x'"),
        ('["x", "y", "x"]', "'x' is there twice"),
        ('{"x": 1, "y": 1}', "two names have one number"),
    ],
)
def test_a_mistaken_file_of_classes_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ordered({"x"}, str(tmp_path / "c.json"))
    with pytest.raises(ValueError, match="no such file"):
        read_classes(str(tmp_path / "absent.json"))
    with pytest.raises(ValueError, match="a folder, wanted a file"):
        read_classes(str(tmp_path))
    (tmp_path / "c.json").write_text('["x", "y", "x"]')
    assert ordered({"0", "2"}, str(tmp_path / "c.json")) == ["0", "1", "2"], "numbers may have one name"


def test_classes_that_training_lacks_are_named_and_none_at_all_stops() -> None:
    lacking = untrained_classes(["0", "1"], ["0", "00", "2", "00"])
    assert lacking == {"00": 2, "2": 1}
    assert untrained_note(lacking, 4) == "3 of 4 test clips have a class that training lacks: '00' (2), '2' (1)"
    assert untrained_note({}, 4) == "" == untrained_note(untrained_classes(["0"], ["0"]), 1)
    with pytest.raises(
        ValueError, match=r"no class of the test \('1', '2'\) is one of the training \('bend', 'run'\)"
    ):
        untrained_classes(["run", "bend"], ["2", "1"])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of as many classes."""
    root = tmp_path_factory.mktemp("clips")
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
        (root / f"{number}.mp4").write_bytes(encode_video(noise, fps=25))
    return root


def write(path: Path, rows: list[str]) -> str:
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def knn(checkpoint: Path, folder: Path, train: str, test: str) -> int:
    return cli.main(["knn", f"run.dir={folder}", f"encoder.checkpoint={checkpoint}", f"data.train={train}",
                     f"data.test={test}", "data.workers=0", "neighbours.k=1"])  # fmt: skip


def test_a_test_video_that_is_replaced_by_one_of_as_many_bytes_is_measured_anew(
    clips: Path, checkpoint: Path, tmp_path: Path
) -> None:
    both = [(clips / f"{n}.mp4").read_bytes() for n in (0, 1)]
    asked = tmp_path / "asked.mp4"
    train = write(tmp_path / "train.csv", ["file,label", *(f"{clips / name}.mp4,{name}" for name in "01")])
    test = write(tmp_path / "test.csv", ["file,label", "asked.mp4,0"])
    for number in (0, 1):
        asked.write_bytes(both[number].ljust(max(map(len, both)), b"\0"))
        assert knn(checkpoint, tmp_path / "run", train, test) == 0
        assert json.loads((tmp_path / "run/predictions.jsonl").read_text())["prediction"] == f"{number}"
    made = set((tmp_path / "run/features").iterdir())
    assert knn(checkpoint, tmp_path / "run", train, test) == 0
    assert set((tmp_path / "run/features").iterdir()) == made, "those of the same file are read again"


def test_one_list_for_both_parts_is_told_and_its_splits_are_obeyed(
    clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write(clips / "plain.csv", ["file,label", *(f"{n}.mp4,{n % 3}" for n in range(12))])
    assert knn(checkpoint, tmp_path / "same", plain, plain) == 0
    said = capsys.readouterr().out
    assert "warning: 12 of 12 test clips are training clips, too: 0.mp4" in said
    assert "train: 12 usable (columns file, label)\n  such as 0.mp4: '0'" in said
    found = json.loads((tmp_path / "same/results.json").read_text())
    assert found["in both parts"].startswith("12 of 12") and found["data"][1]["usable"] == 12
    assert "  in both parts 12 of 12 test clips are" in said[said.index("\n  top1 ") :], "beside the figures, too"

    contents = [found["data"][0]["content"], found["data"][1]["content"]]
    for rows, same in (  # by what it says, whatever the order: a study knows by it what was measured on other labels
        ([f"{n}.mp4,{n % 3},note" for n in reversed(range(12))], True),
        ([f"{n}.mp4,{n // 11 + n % 3},note" for n in range(12)], False),
        ([f"{n}.mp4,{n % 3},note" for n in range(11)], False),
    ):
        listed = open_labelled(write(clips / "other.csv", ["file,label,remark", *rows]))
        assert ([labelled_inventory("train", listed).content] * 2 == contents) == same

    rows = [f"{n}.mp4,{n % 4},{'test' if n > 8 else 'train'},p{n % 2}" for n in range(12)]
    split = write(clips / "split.csv", ["file,label,split,group", *rows, "gone.mp4,1,train,p0"])
    assert knn(checkpoint, tmp_path / "split", split, split) == 0
    said = capsys.readouterr().out
    assert "2 groups are in training and test: p0, p1" in said and "test clips are training" not in said
    found = json.loads((tmp_path / "split/results.json").read_text())
    assert [part["usable"] for part in found["data"]] == [9, 3] and found["figures"]["top1"]["clips"] == 3
    assert found["left_out"] == {"missing_video": 1}
    left_out = json.loads((tmp_path / "split/left_out.jsonl").read_text())
    assert (left_out["part"], left_out["key"], left_out["reason"]) == ("train", "gone.mp4", "missing_video")


def test_lists_of_the_same_paths_in_two_folders_have_features_of_their_own(
    clips: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Each test clip is one of the training, of another name: the nearest neighbour is right only by the pixels."""
    (tmp_path / "test").mkdir()
    for number in range(12):
        (tmp_path / "test" / f"{11 - number}.mp4").write_bytes((clips / f"{number}.mp4").read_bytes())
    train = write(clips / "a.txt", [f"{n}.mp4 {n}" for n in range(12)])
    test = write(tmp_path / "test/a.txt", [f"{n}.mp4 {11 - n}" for n in range(12)])
    assert knn(checkpoint, tmp_path / "run", train, test) == 0
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert found["figures"]["top1"]["value"] == 1.0


def test_parts_that_share_no_class_stop_before_any_feature(
    clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(clips / "one.txt", ["0.mp4 0", "1.mp4 1"])
    test = write(clips / "two.txt", ["2.mp4 run", "3.mp4 bend"])
    assert knn(checkpoint, tmp_path / "run", train, test) == 2
    assert "no class of the test ('bend', 'run') is one of the training ('0', '1')" in capsys.readouterr().err
    assert not (tmp_path / "run/features").exists()


def test_a_class_of_the_file_that_no_training_clip_has_is_told(
    clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = write(clips / "t.txt", ["0.mp4 0", "1.mp4 1"]), write(clips / "u.txt", ["2.mp4 2", "3.mp4 1"])
    names = f"data.classes={write(tmp_path / 'names.txt', ['a', 'b', 'c'])}"
    command = ["knn", f"run.dir={tmp_path}/run", f"encoder.checkpoint={checkpoint}", "data.workers=0",
               f"data.train={train}", f"data.test={test}", "neighbours.k=1", names]  # fmt: skip
    assert cli.main(command) == 0
    assert "1 of 2 test clips have a class that training lacks: '2' (1)" in capsys.readouterr().out
    config = write(tmp_path / "f.yaml", [FINETUNE.format(run=tmp_path / "f", train=train, test=test)])
    fine = prepared(load_finetune(config, ["train.global_batch_size=2", "train.micro_batch_size=2", names]))
    assert fine.lacking == {"2": 1}
    unknown = write(clips / "v.txt", ["2.mp4 2"])
    assert cli.main([word.replace(test, unknown).replace("/run", "/none") for word in command]) == 2
    assert "no class of the test ('2') is one of the training ('0', '1')" in capsys.readouterr().err


def test_random_weights_are_a_checkpoint(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(clips / "r.txt", [f"{n}.mp4 {n % 2}" for n in range(12)])
    encoder = ["encoder.checkpoint=random", "encoder.size=tiny", "encoder.frames=4", "encoder.image_size=32"]
    data = [f"data.train={one}", f"data.test={one}", "data.workers=0"]
    assert cli.main(["knn", f"run.dir={tmp_path}/r", *encoder, *data]) == 0
    assert json.loads((tmp_path / "r/results.json").read_text())["checkpoint"] == "random"
    assert "has no stride of a pretraining: frames are 4 apart" in capsys.readouterr().out
    for number, known in enumerate(("data.stride=4", "data.sampling=segments")):
        assert cli.main(["knn", f"run.dir={tmp_path}/r{number}", *encoder, *data, known]) == 0
        assert "no stride" not in capsys.readouterr().out


def test_another_method_in_a_folder_replaces_no_results(clips: Path, checkpoint: Path, tmp_path: Path) -> None:
    one = write(clips / "m.txt", [f"{n}.mp4 {n % 2}" for n in range(12)])
    assert knn(checkpoint, tmp_path / "run", one, one) == 0
    kept = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    common = [f"run.dir={tmp_path}/run", f"encoder.checkpoint={checkpoint}", f"data.train={one}", f"data.test={one}"]
    for _ in range(2):
        assert cli.main(["probe", *common, "data.workers=0", "neighbours.k=1"]) == 0
        assert {name: (tmp_path / "run" / name).read_bytes() for name in kept} == kept
        assert json.loads((tmp_path / "run/results-linear-probe.json").read_text())["method"] == "linear probe"
    assert (tmp_path / "run/predictions-linear-probe.jsonl").is_file()


FINETUNE = """
run: {{dir: {run}}}
data: {{train: {train}, test: {test}, frames: 4, stride: 1, size: 32, workers: 0}}
finetune: {{rand_augment: null, test_temporal_views: 1, test_spatial_views: 1, mixup: 0, cutmix: 0}}
model: {{size: tiny}}
train: {{steps: 1, global_batch_size: 4, micro_batch_size: 4}}
log: {{tensorboard: false}}
"""


def test_a_finetuning_keeps_its_classes_and_refuses_others(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(clips / "f.txt", [f"{n}.mp4 {n}" for n in range(12)])
    (tmp_path / "names.txt").write_text("".join(f"name {n}\n" for n in range(12)))
    config = write(tmp_path / "f.yaml", [FINETUNE.format(run=tmp_path / "run", train=train, test=train)])
    command = ["finetune", "--config", config, f"data.classes={tmp_path}/names.txt"]
    assert cli.main(command) == 0
    newest = latest(tmp_path / "run/checkpoints")
    assert newest is not None
    facts = json.loads((newest / "manifest.json").read_text())
    assert facts["class_labels"] == [str(n) for n in range(12)]
    assert facts["labels"] == [f"name {n}" for n in range(12)], "the export names its classes"
    noted = json.loads((tmp_path / "run/data.json").read_text())
    assert [entry["part"] for entry in noted] == ["train", "test"]

    def opened_again(*overrides: str) -> list[str]:
        again = load_finetune(config, [*command[3:], *overrides])
        parts = prepared(again)
        run_folder.write_start(tmp_path / "run", again, setup.data_metadata(parts), {}, 1)
        return parts.classes

    assert opened_again() == facts["class_labels"] and "another size or time" not in capsys.readouterr().out
    os.utime(clips / "3.mp4", ns=(1, 1))
    assert opened_again() == facts["class_labels"]
    assert capsys.readouterr().out.count("f.txt: 1 of 12 files that were looked at have another size or time") == 2
    reordered = [f"{n} name {n}\n" for n in reversed(range(12))]
    (tmp_path / "names.txt").write_text("".join(reordered))
    assert opened_again() == facts["class_labels"], "a test uses the checkpoint's order"
    write(clips / "f.txt", [f"{n}.mp4 {(n + 1) % 12}" for n in range(12)])
    with pytest.raises(ValueError, match="the run was started on other data"):
        opened_again()
    write(clips / "f.txt", [f"{n}.mp4 {n % 11}" for n in range(12)])
    (tmp_path / "names.txt").write_text("".join(f"name {n}\n" for n in range(11)))
    with pytest.raises(ValueError, match="its checkpoint has 12 classes, the data 11; one of them lacks '11'"):
        opened_again()


def test_labels_that_look_like_missing_values_are_said() -> None:
    assert missing_note(["bend", "nano", "no", "-", "0"]) == ""
    said = "labels 'None', 'nan' look like a missing value and count as labels like others: leave the cell empty"
    assert missing_note(["bend", "nan", "None", "nan"]).startswith(said)
    assert missing_note(["<NA>"], "groups").startswith("groups '<NA>' look like a missing value and count as groups")


def test_labels_that_look_alike_are_said(
    clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert alike_note(["bend", "run", "run", "1", "10", "-1", "inf", "infinity", "1-2", "1 2", "12"]) == ""
    assert alike_note(["0E1", "0E2", "12E3", "12000", "nan", "NaN2"]) == "", "names of groups, not numbers"
    assert alike_note(["12345678901234567890", "12345678901234567891", "9" * 5000]) == "", "numbers of videos"
    for one, other in (
        ("1", "1.0"),
        ("01", "1"),
        ("0", "-0"),
        ("wave", "wave\u200b"),
        ("jump up", "jump_up"),
        ("a b", "a\xa0 b"),
        ("walk", '"walk"'),
    ):
        assert f": {min(one, other)!a} and {max(one, other)!a}: write" in alike_note(["run", one, other])
    said = (
        "labels that differ in case, blanks, quotation marks, unseen characters, Unicode's form or a number's "
        "digits alone count as different labels: "
        "'Bend' and 'bend', 'cafe\\u0301' and 'caf\\xe9': write them in one way if they are the same"
    )
    train = write(clips / "alike.csv", ["file,label", "0.mp4,bend", "1.mp4,caf\xe9"])
    test = write(clips / "alike_test.csv", ["file,label", "2.mp4,Bend", "3.mp4,cafe\u0301", "4.mp4,bend"])
    assert knn(checkpoint, tmp_path / "alike", train, test) == 0
    assert f"warning: {said}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "alike/results.json").read_text())["facts"]["note"].endswith(f"; {said}")


def test_groups_that_are_written_in_two_ways_are_told(
    clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one list by data.test_groups, whose other half then stays in training, and in two lists."""
    rows = ["file,label,group", "0.mp4,a,p1", "1.mp4,b,P1", "2.mp4,a,P2", "3.mp4,b,p3"]
    whole = write(clips / "groups.csv", rows)
    command = ["knn", f"encoder.checkpoint={checkpoint}", "data.workers=0", "neighbours.k=1", f"data.train={whole}"]
    assert cli.main([*command, f"run.dir={tmp_path}/one", f"data.test={whole}", "data.test_groups=[p1, p3]"]) == 0
    said = "count as different groups: 'P1' and 'p1': write them in one way if they are the same"
    assert said in capsys.readouterr().out
    assert json.loads((tmp_path / "one/results.json").read_text())["facts"]["note"].endswith(said)
    train, test = (write(clips / f"{name}.csv", [rows[0], *of]) for name, of in (("g", rows[1:4]), ("h", rows[4:])))
    assert knn(checkpoint, tmp_path / "two", train, test) == 0
    assert "count as different groups" in capsys.readouterr().out
    same = write(clips / "same.csv", [rows[0], "3.mp4,b,p4"])
    assert knn(checkpoint, tmp_path / "three", train, same) == 0
    assert "count as different groups: 'P1' and 'p1'" in capsys.readouterr().out, "of the training part alone, too"


def test_copies_of_training_clips_in_the_test_are_told(
    clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under other names: copies, hard links, links; not a clip that has the length of another alone."""
    train = write(clips / "originals.csv", ["file,label", "0.mp4,a", "1.mp4,b"])
    other = tmp_path / "others"
    other.mkdir()
    (other / "copy.mp4").write_bytes((clips / "0.mp4").read_bytes())
    os.link(clips / "1.mp4", other / "hard.mp4")
    os.symlink(clips / "1.mp4", other / "soft.mp4")
    longest = max((clips / f"{n}.mp4").stat().st_size for n in (0, 1, 2))
    (other / "new.mp4").write_bytes((clips / "2.mp4").read_bytes().ljust(longest, b"\0"))
    rows = ["file,label", "copy.mp4,a", "hard.mp4,b", "soft.mp4,b", "new.mp4,a"]
    assert knn(checkpoint, tmp_path / "run", train, write(other / "test.csv", rows)) == 0
    assert (
        "warning: 3 of 4 test clips are training clips, too: copy.mp4, hard.mp4, soft.mp4" in capsys.readouterr().out
    )
    assert knn(checkpoint, tmp_path / "new", train, write(other / "one.csv", [rows[0], rows[4]])) == 0
    assert "training clips, too" not in capsys.readouterr().out
    for name, middle in (("black", b"a"), ("blank", b"b")):
        (other / f"{name}.mp4").write_bytes(bytes(2**17) + middle + bytes(2**17))
    raw = [open_labelled(write(other / f"{name}.csv", [rows[0], f"{name}.mp4,a"])) for name in ("black", "blank")]
    assert overlap_note(*raw) == "", "both begin and end in black"
    for name in ("e", "f"):
        (other / f"{name}.mp4").touch()
    empty = [open_labelled(write(other / f"{name}.csv", [rows[0], f"{name}.mp4,a"])) for name in ("e", "f")]
    assert overlap_note(*empty) == "", "nothing is no clip"


def test_a_single_class_is_said() -> None:
    assert "all labels are 'walk'" in single_class_note(["walk"]) and single_class_note(["run", "walk"]) == ""
