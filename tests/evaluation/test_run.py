"""`tgm-scale knn`, `probe` and `retrieve` as a user has them: files, exit codes, the same digits on two processes."""

from __future__ import annotations

import html
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from launch import run
from safetensors.torch import load_file

from tgm_scale import cli
from tgm_scale.contracts import Grid
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.evaluation import ranking, retrieve
from tgm_scale.evaluation.features import FrozenEncoder
from tgm_scale.evaluation.settings import load_frozen
from tgm_scale.evaluation.views import decode_views
from tgm_scale.models.patches import interpolated_table
from tgm_scale.runs import events
from tgm_scale.runs.run_folder import FAILED

LABEL = "data.label=truth.objects.0.shape"


def arguments(command: str, folder: Path, checkpoint: Path, shards: str, *more: str) -> list[str]:
    data = [f"data.train={shards}", f"data.test={shards}", LABEL, "data.workers=0"]
    return [command, f"run.dir={folder}", f"encoder.checkpoint={checkpoint}", *data, *more]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


TWO_EPOCHS = ["probe", "probe.head=attentive", "probe.heads=2", "probe.steps=1", "probe.epochs=2"]


@pytest.mark.parametrize("more", [["knn"], ["probe"], TWO_EPOCHS])
def test_results_predictions_and_the_same_again(
    shards: str, checkpoint: Path, tmp_path: Path, more: list[str]
) -> None:
    command = arguments(more[0], tmp_path / "run", checkpoint, shards, *more[1:])
    assert cli.main(command) == 0
    found = results(tmp_path / "run")
    top1 = found["figures"]["top1"]
    assert top1["low"] <= top1["value"] <= top1["high"] and top1["clips"] == 37
    rows = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert len(rows) == 37 and right / 37 == top1["value"]
    assert "epochs=2" in more[-1] or top1["value"] > 1.5 / 6, "its own training clips: above chance"
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run/features").rglob("*.safetensors")}
    assert cli.main(command) == 0
    assert results(tmp_path / "run") == found
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "run/features").rglob("*.safetensors")}


def test_two_processes_give_the_digits_of_one(
    shards: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"  # chunks of 10, so that both processes have some
    worker.write_text(
        "import sys\nfrom tgm_scale.evaluation import clips\nclips.CHUNK = 10\n"
        "from tgm_scale import cli\nsys.exit(cli.main(sys.argv[1:]))\n"
    )
    for count in (1, 2):
        run(count, [str(worker), *arguments("probe", tmp_path / str(count), checkpoint, shards)])
    one, two = (tmp_path / name for name in "12")
    assert results(one) == results(two)
    assert (one / "predictions.jsonl").read_text() == (two / "predictions.jsonl").read_text()
    files = [sorted(file.relative_to(folder) for file in folder.rglob("features/*/*")) for folder in (one, two)]
    assert files[0] == files[1] and len(files[0]) == 4
    for file in files[0]:
        assert (one / file).read_bytes() == (two / file).read_bytes()


def few_clips(folder: Path) -> Path:
    make_corpus(folder, 4, SyntheticSpec(size=32, frames=8, seed=1, mode="one_mover"))
    return folder


def test_a_report_has_what_the_terminal_said_and_tells_an_earlier_failure_apart(
    shards: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, few = tmp_path / "r", few_clips(tmp_path / "few")
    tested = f"data.test={few}"  # too few to tell
    assert cli.main(arguments("probe", folder, checkpoint, shards, tested, f"data.train={few}")) == 2
    assert cli.main(["report", str(folder)]) == 2
    assert "its start failed: a probe needs 2 classes and 10 training clips" in capsys.readouterr().err
    assert cli.main(arguments("probe", folder, checkpoint, shards, tested, "probe.baselines=true")) == 0
    said = capsys.readouterr().out

    def cells() -> list[list[str]]:
        assert cli.main(["report", str(folder)]) == 0
        rows = re.findall(r"<tr>(.*?)</tr>", (folder / "report.html").read_text(), re.DOTALL)
        return [[html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", one)] for one in rows]

    shown = cells()
    [failed] = [one for one in shown if "needs 2 classes" in one[-1]]
    assert failed[1] == "failed, an earlier attempt" and "starts" not in failed[2]
    named = dict(one for one in shown if len(one) == 2)
    assert "(95 %, bootstrap over 4 clips)" in named["top1"]
    for name in ("top1", "mean class", "majority class", "few test clips", "classes"):
        assert f"  {name:12} {named[name]}\n" in said
    compared = [name for name, text in named.items() if "; this less that " in text]
    assert compared and all(f"  {name}: {named[name]}\n" in said for name in compared)
    time.sleep(1.0)  # events have whole seconds
    events.append(folder, FAILED, why="the disk is full", starts=0)
    assert [one[1] for one in cells() if len(one) == 3 and one[1].startswith("failed")] == [failed[1], "failed"]


def test_mistakes_end_with_code_2_and_a_way_out(
    shards: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def message(*more: str, command: str = "knn") -> str:
        assert cli.main(arguments(command, tmp_path / "r", checkpoint, shards, *more)) == 2
        return capsys.readouterr().err

    assert "data.tset: unknown key; did you mean data.test?" in message("data.tset=x")
    assert "name the label's place" in message("data.label=lable")
    assert cli.main(arguments("knn", tmp_path / "r", checkpoint, shards)) == 0, "the mistakes left no trace"
    assert "of another configuration" in message("neighbours.k=3")
    run = f"run.dir={tmp_path / 'a'}"
    attentive = (run, "probe.head=attentive", "probe.heads=5")
    assert "probe.heads=5 does not divide the encoder's width" in message(*attentive, command="probe")
    assert "encoder.frames=3: wanted a multiple of 2" in message("encoder.frames=3", run)
    assert "encoder.image_size=9: wanted a multiple of 8" in message("encoder.image_size=9", run)
    assert "encoder.frames=3: wanted a multiple of 2" in message("encoder.checkpoint=random", "encoder.frames=3", run)
    small = ("probe.pool=4x4", "encoder.image_size=16", run)
    assert "probe.pool=4x4: clips of 16 pixels have 2 x 2 tokens" in message(*small, command="probe")
    assert message("data.train=/nowhere/a", run).startswith("tgm-scale knn: data.train: no shards (*.tar) at")
    for rates in ("[-1]", "[1e-3, 0]", "[1e30]"):
        assert "wanted rates above 0, of at most 10" in message(f"probe.learning_rates={rates}", command="probe")
    gone = f"encoder.checkpoint={tmp_path / 'gone'}"
    assert message(gone, f"run.dir={tmp_path / 'b'}") == f"tgm-scale knn: {gone}: no such file or folder\n"
    assert not (tmp_path / "b").exists()
    begun = f"encoder.checkpoint={tmp_path / 'a'}"
    assert f"{begun}: a run without a checkpoint" in message(begun, f"run.dir={tmp_path / 'c'}")
    (listed := tmp_path / "rows.csv").write_text("file,class\na.mp4,x\nb.mp4,y\n")
    rooted = message(f"data.train={listed}", f"data.root={tmp_path}/vids", "data.label=class", run)
    assert f"data.root={tmp_path}/vids: no such folder" in rooted
    few = (f"run.dir={tmp_path / 'a'}", f"data.train={few_clips(tmp_path / 'few')}")
    wanted = r"a probe needs 2 classes and 10 training clips: found \d and"
    remedy = "more labelled clips, or take tgm-scale knn, which works with any number\n"
    assert re.search(rf"{wanted} 4: give {remedy}", message(*few, command="probe"))
    share = "data.share=0.01"
    assert re.search(
        rf"{wanted} \d, by {share}: raise data.share, give {remedy}", message(few[0], share, command="probe")
    )
    assert f"encoder.size=L: {checkpoint} is of " in message("encoder.size=L", f"run.dir={tmp_path / 'a'}")
    assert not list(tmp_path.glob("a/features")), "before any clip is decoded"
    assert cli.main(arguments("knn", tmp_path / "k", checkpoint, shards, few[1], "neighbours.k=5")) == 0
    assert (
        "warning: neighbours.k=5: 4 training clips, 2 at most of a class: all of them vote" in capsys.readouterr().out
    )
    assert cli.main(arguments("knn", tmp_path / "k3", checkpoint, shards, few[1], "neighbours.k=3")) == 0
    assert "2 at most of a class: clips of others always vote: try a smaller k" in capsys.readouterr().out
    other = ("retrieve.zero_shot=true", f"run.dir={tmp_path / 'z'}")
    assert "retrieve.towers: missing" in message(*other, command="retrieve")
    assert "retrieve.towers=nowhere: no such folder" in message(*other, "retrieve.towers=nowhere", command="retrieve")


def test_retrieval_and_zero_shot_find_what_the_projection_says(
    shards: str, checkpoint: Path, towers: Path, tmp_path: Path
) -> None:
    """Scores worked out by hand from features, projection and text tower."""
    from tgm_scale.evaluation.features import extract
    from tgm_scale.guidance.towers import load_text_tower

    encoder = FrozenEncoder.load(checkpoint)
    clips = extract([encoder], open_corpus(shards), "truth.objects.0.shape")
    video = torch.nn.functional.normalize(clips.features[0] @ encoder.projection.T, dim=1)
    text = load_text_tower(str(towers), device=torch.device("cpu"), dtype=torch.float32)
    base = arguments("retrieve", tmp_path / "zero", checkpoint, shards, f"retrieve.towers={towers}")
    assert cli.main([*base, "retrieve.zero_shot=true", 'retrieve.templates=["{}", "a {} there"]']) == 0
    classes = sorted(set(clips.labels))
    means = [text.encode([name, f"a {name} there"]).mean(0) for name in classes]
    wanted = (video @ torch.nn.functional.normalize(torch.stack(means), dim=1).T).argmax(1).tolist()
    rows = [json.loads(line) for line in (tmp_path / "zero/predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [classes[i] for i in wanted]

    assert "note" not in results(tmp_path / "zero")["facts"]
    base[1] = f"run.dir={tmp_path / 'alike'}"
    (tmp_path / "classes.json").write_text(
        json.dumps({name: "A shape" if name == classes[0] else "a  shape" for name in classes})
    )
    assert cli.main([*base, "retrieve.zero_shot=true", f"data.classes={tmp_path}/classes.json"]) == 0
    same = "classes of the same texts, of which none is ever told from the other: "
    assert results(tmp_path / "alike")["facts"]["note"] == same + " and ".join(f"'{name}'" for name in classes)

    base[1] = f"run.dir={tmp_path / 'back'}"
    assert cli.main(base) == 0
    figures = results(tmp_path / "back")["figures"]
    ways = ["text to video", "video to text"]
    ways += [f"dual softmax, {way}" for way in ways]
    assert set(figures) == {f"{way} R@{k}" for way in ways for k in (1, 5, 10)}
    assert {f"{way} {of} rank" for way in ways for of in ("mean", "median")} < set(results(tmp_path / "back")["facts"])
    assert all(
        figures[f"{way} R@1"]["value"] <= figures[f"{way} R@10"]["value"] for way in ("text to video", "video to text")
    )


def test_captions_of_equal_tokens_are_one_answer(shards: str, checkpoint: Path, towers: Path, tmp_path: Path) -> None:
    """Each of them finds all clips of the others, as in training, where they are never each other's negatives."""

    corpus, long = open_corpus(shards), " ".join(["texture"] * 20)
    captions = ["Texture 3", "texture  3", "TEXTURE 3", f"{long} a", f"{long} b", "texture 4"]
    for number, caption in enumerate(captions):
        ref = corpus.sample(0, number)
        (tmp_path / f"{number}.mp4").write_bytes(corpus.read(ref, ["mp4"])["mp4"])
        (tmp_path / f"{number}.txt").write_text(caption)
    command = ["retrieve", f"run.dir={tmp_path}/r", f"encoder.checkpoint={checkpoint}", f"data.test={tmp_path}",
               "data.workers=0", f"retrieve.towers={towers}"]  # fmt: skip
    assert cli.main(command) == 0
    found = results(tmp_path / "r")
    assert found["facts"]["videos"] == 6 and found["facts"]["distinct captions"] == 3
    rows = [json.loads(line) for line in (tmp_path / "r/predictions.jsonl").read_text().splitlines()]
    one = {"Texture 3": 0, "texture  3": 0, "texture 3": 0, "TEXTURE 3": 0, f"{long} a": 1, f"{long} b": 1}
    right = [one.get(row["caption"], 2) == one.get(row["prediction"], 2) for row in rows]
    assert found["figures"]["video to text R@1"]["value"] == pytest.approx(sum(right) / 6)
    assert "video to text R@5" not in found["figures"], "there are three answers"


def test_an_evaluation_goes_on_where_its_encoder_was_moved(
    shards: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a study whose folder was moved: the encoder is known by its content."""
    here, there, other = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors"))
    shutil.copy(checkpoint, here)
    assert cli.main(arguments("knn", tmp_path / "k", here, shards)) == 0
    found = results(tmp_path / "k")
    (tmp_path / "k" / "predictions.jsonl").unlink()
    here.rename(there)
    assert cli.main(arguments("knn", tmp_path / "k", there, shards)) == 0
    assert results(tmp_path / "k")["figures"] == found["figures"]
    assert (tmp_path / "k" / "predictions.jsonl").is_file()
    other.write_bytes(there.read_bytes()[:-4] + b"\0\0\0\0")
    capsys.readouterr()
    assert cli.main(arguments("knn", tmp_path / "k", other, shards)) == 2
    said = capsys.readouterr().err
    assert f"encoder.checkpoint: '{there}' there, '{other}' here, with other weights" in said
    assert cli.main(arguments("knn", tmp_path / "k", Path("random"), shards)) == 2


@pytest.fixture(scope="module")
def overflowing(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with finite weights whose products are infinite."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    state, file = load_file(checkpoint), tmp_path_factory.mktemp("overflow") / "model.safetensors"
    for layer in ("fc1", "fc2"):
        state[f"encoder.blocks.0.mlp.{layer}.weight"] *= 1e25
    with safe_open(checkpoint, framework="pt") as stream:
        save_file(state, file, stream.metadata())
    return file


@pytest.mark.parametrize(
    "more", [["knn"], ["probe"], TWO_EPOCHS, ["retrieve"], ["retrieve", "retrieve.zero_shot=true"]]
)
def test_features_that_are_not_finite_stop_with_clip_and_layer(
    shards: str, overflowing: Path, towers: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    towers_too = [f"retrieve.towers={towers}"] if more[0] == "retrieve" else []
    assert cli.main([*arguments(more[0], tmp_path / "r", overflowing, shards, *more[1:]), *towers_too]) == 2
    message = capsys.readouterr().err
    assert (
        "one_mover_000000: what the model gives is not finite" in message
        and "first in what blocks.0.mlp.fc2 gives" in message
    )
    assert not (tmp_path / "r/results.json").exists()


def test_what_comes_after_finite_features_may_not_overflow_either(
    shards: str, checkpoint: Path, towers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A projection, float16 of tokens, votes at a small temperature, features kept by an earlier run."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    def message(at: Path, command: str, folder: str, *more: str) -> str:
        assert cli.main(arguments(command, tmp_path / folder, at, shards, *more)) == 2
        return capsys.readouterr().err

    state, file = load_file(checkpoint), tmp_path / "model.safetensors"
    with safe_open(checkpoint, framework="pt") as stream:
        facts = stream.metadata()
    save_file(state | {"projection.weight": state["projection.weight"] * 1e38}, file, facts)
    assert "its projected features are not finite" in message(file, "retrieve", "a", f"retrieve.towers={towers}")
    save_file(state | {"encoder.norm.weight": state["encoder.norm.weight"] * 1e6}, file, facts)
    assert "as torch.float16, are not finite" in message(file, "probe", "b", "probe.head=attentive", "probe.heads=2")
    assert "the scores of the test clips are not finite" in message(
        checkpoint, "knn", "c", "neighbours.temperature=1e-3"
    )
    rows = next((tmp_path / "c/features").rglob("*.safetensors"))
    with safe_open(rows, framework="pt") as stream:
        kept, names = stream.get_tensor("rows"), stream.metadata()
    save_file({"rows": kept.fill_(float("nan"))}, rows, names)
    assert "its features in" in message(checkpoint, "knn", "c", "neighbours.temperature=1e-3")


def test_the_place_of_the_first_right_answer() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.2, 0.3], [0.4, 0.4, 0.4]])
    right = torch.tensor([[False, True, True], [True, False, False], [False, True, False]])
    assert ranking.first_right(scores, right).tolist() == [1, 2, 2]


def test_texts_of_classes_come_from_names_or_descriptions(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"0": "bend", "1": ["wave", "move a hand"]}))
    base = ["run.dir=x", "encoder.checkpoint=x", "data.test=x", 'retrieve.templates=["{}", "see {}"]']
    named = load_frozen(None, [*base, f"data.classes={tmp_path / 'c.json'}"])
    assert retrieve.class_texts(named, ["0", "1"]) == {
        "0": ["bend", "see bend"],
        "1": ["wave", "see wave", "move a hand", "see move a hand"],
    }
    assert retrieve.class_texts(load_frozen(None, base), ["two_hands"]) == {
        "two_hands": ["two hands", "see two hands"]
    }
    with pytest.raises(ValueError, match="no entry for '7'"):
        retrieve.class_texts(named, ["7"])


def test_descriptions_are_found_by_the_classs_name_too(tmp_path: Path) -> None:
    """Labels may be the file's names; a name that is another class's label is not that class."""
    (tmp_path / "c.json").write_text(json.dumps({"0": ["bend", "bow"], "bend": ["wave", "move a hand"]}))
    base = ["run.dir=x", "encoder.checkpoint=x", "data.test=x", 'retrieve.templates=["{}"]']
    named = load_frozen(None, [*base, f"data.classes={tmp_path / 'c.json'}"])
    wanted = {"bend": ["bend", "bow"], "wave": ["wave", "move a hand"]}
    assert retrieve.class_texts(named, ["bend", "wave"]) == wanted


def test_frozen_features_of_clips_of_another_shape_have_interpolated_positions(
    shards: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["knn", "encoder.frames=2", "encoder.image_size=64"]
    assert cli.main(arguments(more[0], tmp_path / "run", checkpoint, shards, *more[1:])) == 0
    said = "interpolated in space and time from clips of 4 frames of 32 pixels to 2 frames of 64"
    assert f"positions: {said}" in capsys.readouterr().out and results(tmp_path / "run")["positions"] == said
    moved = FrozenEncoder.load(checkpoint, frames=2, image_size=64)
    assert torch.equal(moved.encoder.positions.value, interpolated_table(Grid(2, 4, 4), Grid(1, 8, 8), 24))
    clip = torch.randint(0, 256, (1, 3, 2, 64, 64), dtype=torch.uint8)
    assert moved.tokens(clip).shape == (1, 64, 24)
    same = FrozenEncoder.load(checkpoint, frames=4, image_size=32)
    assert same.positions is None and same.digest == FrozenEncoder.load(checkpoint).digest
    mistake = arguments(more[0], tmp_path / "odd", checkpoint, shards, "encoder.image_size=50")
    assert cli.main(mistake) == 2 and "encoder.image_size=50: wanted a multiple of 8" in capsys.readouterr().err


def test_an_attentive_probe_sees_the_tokens_of_all_views(shards: str, checkpoint: Path, tmp_path: Path) -> None:
    """Not the mean by place, which is another thing in each crop."""
    more = ["encoder.spatial_views=3", "encoder.temporal_views=2"]
    assert cli.main(arguments(TWO_EPOCHS[0], tmp_path / "run", checkpoint, shards, *TWO_EPOCHS[1:], *more)) == 0
    kept = [load_file(file)["rows"] for file in (tmp_path / "run" / "features").rglob("*.safetensors")]
    assert sum(len(rows) for rows in kept) == 37 and all(rows.shape[1:] == (6 * 32, 24) for rows in kept)
    encoder, corpus = FrozenEncoder.load(checkpoint), open_corpus(shards)
    ref = corpus.sample(0, 0)
    clips = decode_views(corpus.read(ref, [ref.video])[ref.video], encoder.views(temporal=2, spatial=3))
    wanted = encoder.tokens(clips).flatten(0, 1)
    torch.testing.assert_close(kept[0][0].float(), wanted, atol=2e-3, rtol=2e-3)


def test_a_probe_by_place_reads_means_of_places_and_a_list_with_groups_is_validated_by_group(
    shards: str, checkpoint: Path, tmp_path: Path
) -> None:
    encoder = FrozenEncoder.random("tiny", 4, 32, 0)
    video = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = encoder.tokens(video).view(2, 2, 4, 4, 128)  # two slots of 4 x 4
    quarters = [tokens[:, t, r : r + 2, c : c + 2].mean((1, 2)) for t in range(2) for r in (0, 2) for c in (0, 2)]
    found = encoder.by_place(video, 2).unflatten(1, (2, 128, 4)).movedim(3, 2).flatten(1, 2)
    torch.testing.assert_close(found, torch.stack(quarters, 1))

    folder, lines = tmp_path / "videos", ["file,label,group"]
    folder.mkdir()
    corpus = open_corpus(shards)
    for number, ref in enumerate(list(corpus.refs)[:24]):
        (folder / f"{number}.mp4").write_bytes(corpus.read(ref, [ref.video])[ref.video])
        lines.append(f"{number}.mp4,{number % 2},{number // 4}")
    (folder / "labels.csv").write_text("\n".join(lines))
    command = arguments("probe", tmp_path / "run", checkpoint, str(folder / "labels.csv"), "probe.pool=2x2")
    assert cli.main([*command, "data.label=label"]) == 0
    facts = results(tmp_path / "run")["facts"]
    assert facts["majority class"] == "top1 of always answering '0': 0.5000"
    assert re.fullmatch(r"top1 \[[01]\.\d{4}, [01]\.\d{4}\] \(95 %, bootstrap over 6 groups\)", facts["over groups"])
    assert facts["few groups"].startswith("6, fewer than 10: ")
    assert facts["validation"] == "1 of 6 groups" and "2 x 2 places" in facts["features"]
    assert facts["few test clips"].startswith("24, fewer than 30: ")
    assert facts["validation accuracy"] in (0, 0.25, 0.5, 0.75, 1), "of the four clips of a group"
