"""log.pictures_every draws a fixed few clips, and moves no bit of the training."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import run
from PIL import Image
from short_run import arguments, moving_texture

from tgm_scale import cli
from tgm_scale import config as configuration
from tgm_scale.assembly.corpora import open_corpora
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.evaluation.watched import labels, watched_clips
from tgm_scale.report.render import strip
from tgm_scale.runs.metrics import Metrics, read_metrics
from tgm_scale.runtime.distributed import ProcessInfo

GUIDED = ("masking.recipe=text_guided", "guidance.towers=small", "objective.contrastive_weight=1")


def numbers(folder: Path) -> list[list[object]]:
    return [[row[name] for name in ("step", "loss", "grad_norm", "data_digest")] for row in read_metrics(folder)]


def board(folder: Path) -> dict[int, np.ndarray]:
    """The pictures in TensorBoard by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    return {one.step: pixels(io.BytesIO(one.encoded_image_string)) for one in events.Images("reconstructions")}


def pixels(source: Path | io.BytesIO) -> np.ndarray:
    return np.asarray(Image.open(source))


@pytest.mark.parametrize("ranks, settings", [(1, GUIDED), (2, ("deepspeed.stage=3",))], ids=["guided", "stage 3"])
def test_no_bit_of_a_run_is_moved_and_all_places_have_the_picture(
    config: Path, ranks: int, settings: tuple[str, ...]
) -> None:
    given = arguments(config, "train.steps=4", "log.tensorboard=true", *settings)
    folder, plain = config.parent / "run", config.parent / "plain"
    done = run(ranks, [*given, "log.pictures_every=2"])
    run(ranks, [*given, f"run.dir={plain}"])
    assert numbers(folder) == numbers(plain) and not (plain / "pictures").exists()
    assert done.stdout.count("log.pictures_every: 4 clips of the data: ") == 1
    kept = {step: folder / f"pictures/step-{step:08d}.png" for step in (2, 4)}
    assert sorted((folder / "pictures").iterdir()) == list(kept.values())
    shown = board(folder)
    assert shown.keys() == kept.keys()
    for step, file in kept.items():
        assert (pixels(file) == shown[step]).all()
    first, last = map(pixels, kept.values())
    row = (first.shape[0] + 6) // 12  # four clips: frames, what is seen, the reconstruction
    same = [bool((first[row * n : row * n + row] == last[row * n : row * n + row]).all()) for n in range(12)]
    assert same == [True, True, False] * 4, "the same clips and masks, and a model that learns"
    assert cli.main(["report", str(folder)]) == 0
    assert drawn_in(folder) == [kept[4].read_bytes()]
    a_report_draws_the_newest_checkpoint(plain, pixels(kept[4]))


def drawn_in(folder: Path) -> list[bytes]:
    page = (folder / "report.html").read_text()
    return [base64.b64decode(data) for data in re.findall('data:image/png;base64,([^"]+)"', page)]


def a_report_draws_the_newest_checkpoint(folder: Path, wanted: np.ndarray) -> None:
    assert cli.main(["report", str(folder), "--no-reconstructions"]) == 0 and drawn_in(folder) == []
    assert cli.main(["report", str(folder)]) == 0
    [picture] = drawn_in(folder)
    assert (pixels(io.BytesIO(picture)) == wanted).all(), "what the run itself drew at that step"
    assert "Clips of the training data at step 4: frames" in (folder / "report.html").read_text()
    assert not (folder / "pictures").exists()
    state = next((folder / "checkpoints/step-00000004").glob("state-*.safetensors"))
    state.write_bytes(state.read_bytes()[:-8])
    assert cli.main(["report", str(folder)]) == 0 and drawn_in(folder) == []
    page = html.unescape((folder / "report.html").read_text())
    assert "checkpoint's reconstructions are not drawn: " in page and "step-00000004" in page


def chosen(config: Path, *overrides: str) -> tuple[list[str], str]:
    """The names of the clips that are watched, and of what they are."""
    resolved = configuration.load(str(config), ["log.pictures_every=1", *overrides])
    plan = plan_pretraining(resolved, ProcessInfo(0, 1, 0, torch.device("cpu")))
    clips, of_what = watched_clips(resolved, plan, open_corpora(resolved.data, captions=False))
    assert bool((clips.weight == 1).all()) and len(clips.captions) == len(clips.keys) == len(clips.video)
    return clips.keys, of_what


def test_clips_are_held_out_where_there_are_any_and_whole(config: Path, tmp_path: Path) -> None:
    names, of_what = chosen(config)
    assert len(set(names)) == 4 and of_what == "the data" and names != chosen(config, "run.seed=1")[0]
    make_corpus(tmp_path / "held", 3, SyntheticSpec(size=32, frames=8, seed=5, mode="one_mover"))
    held_out = ("knn.every=5", f"knn.train={tmp_path}/held", f"knn.test={tmp_path}/held",
                "knn.label=truth.objects.0.shape", "data.stride=1")  # fmt: skip
    names, of_what = chosen(config, *held_out)
    assert len(names) == 3 and of_what == "knn.test" and all("one_mover" in name for name in names)
    with ShardWriter(tmp_path / "silent") as writer:
        writer.write("a", {"mp4": encode_video(moving_texture(1), 12), "json": {"label": "x"}})
    silent = ("knn.every=5", f"knn.train={tmp_path}/silent", f"knn.test={tmp_path}/silent")
    assert chosen(config, *silent) == (["00000/a"], "knn.test")
    names, of_what = chosen(config, *silent, *GUIDED)  # which wants captions
    assert len(names) == 4 and of_what == "the data"


def whole(label: str) -> str:
    return label.replace("\n", "")


def test_labels_tell_clips_apart_whose_names_begin_or_end_alike() -> None:
    made = [f"00000/walk%2Ejpg_{number}_00000000_00000000" for number in (1, 2)]  # as `shards make` has them
    assert [whole(one) for one in labels(made)] == made, "whole names"
    assert labels(made)[0].split("\n") == ["00000/walk%2Ejpg_", "1_00000000_", "00000000"], "no number is broken"
    folder = "videos%2Fof%2Fa%2Fsource%2Fwith%2Fa%2Flong%2Ffolder%2F"
    long = [f"00000/{folder}{name}_00000000_00000000" for name in ("walk_1", "run_2")]
    assert [whole(one) for one in labels(long)] == ["...walk_1...", "...run_2..."]
    assert labels(["", "a" * 18]) == ["", "a" * 17 + "\na"]
    odd = [*labels(["a" * 500 + "b", "c" * 500 + "d"]), *labels(["é" * 100]), *labels(made), *labels(long)]
    assert odd[0].startswith("aa") and odd[0].endswith("ab") and odd[2].isascii()
    assert all(len(label.split("\n")) <= 4 and max(map(len, label.split("\n"))) <= 17 for label in odd)


def test_a_whole_label_lies_beside_its_pictures_and_under_no_other() -> None:
    """Four lines of a name and the word below them, in the height of a row and the width of the margin."""
    name = "\n".join(["mmm_00000000%2Ejp"] * 4)
    paper = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    sheet = np.asarray(strip([("", paper), (f"{name}\nframes", paper), ("", paper)]))
    inked = np.argwhere((sheet != 255).any(-1))
    assert inked[:, 0].min() >= 118 and inked[:, 0].max() < 118 + 112 and inked[:, 1].max() < 150


def test_pictures_of_steps_that_are_made_again_go(tmp_path: Path) -> None:
    begun = Metrics(tmp_path, 0, tensorboard=False)
    for step in (2, 4):
        begun.picture(step, Image.new("RGB", (4, 4)))
    begun.close()
    (tmp_path / "pictures/mine.png").write_bytes(b"x")
    Metrics(tmp_path, 3, tensorboard=False).close()
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == ["mine.png", "step-00000002.png"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("log.pictures_every=0", "log.pictures_every"),
        (
            "objective.reconstruction_weight=0",
            "draws reconstructions, and objective.reconstruction_weight=0 learns none",
        ),
    ],
)
def test_a_mistake_is_said_before_a_run_folder_is_made(
    config: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    guided = [*GUIDED, "log.pictures_every=1"]
    assert cli.main(["pretrain", "--config", str(config), *guided, override]) == 2
    assert said in capsys.readouterr().err and not (config.parent / "run").exists()
