"""Whole runs by the real command on real shards: layouts, kills, broken samples, and mistakes.

The joint objective is on throughout: random masks, a small CLIP's text tower, negatives over the global batch.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest
from launch import ROOT, command, environment, run
from short_run import moving_texture
from starts import Started

from tgm_scale import cli
from tgm_scale.checkpoints import checkpoint, folders
from tgm_scale.data.video.encode import encode_video
from tgm_scale.runs.compare import compare
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runs.status import status

STEPS = 24

CONFIG = """
# tgm-scale pretrain, for tests: the smallest joint run.
run: {{dir: {run}}}
data: {{shards: {shards}, frames: 4, stride: 2, size: 32, workers: 0, max_skipped_share: 0.2}}
guidance: {{towers: {towers}}}
masking: {{recipe: random, mask_ratio: 0.6}}
model: {{size: tiny}}
optim: {{base_lr: 3e-2, warmup_share: 0.1}}
train: {{steps: {steps}, global_batch_size: 8, micro_batch_size: 8}}
checkpoint: {{every: 6, keep: 2}}
log: {{every: 1}}
"""


@pytest.fixture
def config(tmp_path: Path, shards: Path, towers: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.format(run=tmp_path / "run", shards=shards, towers=towers, steps=STEPS))
    return file


def words(config: Path, *overrides: str) -> list[str]:
    return ["-m", "tgm_scale", "pretrain", "--config", str(config), *overrides]


def pretrain(config: Path, *overrides: str, world_size: int = 1, code: int = 0) -> subprocess.CompletedProcess[str]:
    return run(world_size, words(config, *overrides), code)


def losses(folder: Path) -> list[tuple]:
    return [
        (row["step"], row["data_digest"], row["loss"], row["loss_reconstruction"], row["loss_contrastive"])
        for row in read_metrics(folder)
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shards: Path, towers: Path) -> Path:
    """The run folder of the run that the others are compared with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = folder / "run.yaml"
    file.write_text(CONFIG.format(run=folder / "run", shards=shards, towers=towers, steps=STEPS))
    done = run(1, words(file), anew=True)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    return folder / "run"


def test_a_run_says_what_it_does_and_no_more(undisturbed: Path) -> None:
    output = (undisturbed.parent / "output.txt").read_text()
    assert f"step {STEPS}/{STEPS}" in output and "ETA" in output and "clips/s" in output and "data " in output
    assert "Warning" not in output and "deepspeed" not in output.lower(), output
    lines = [line for line in output.splitlines() if not line.startswith("step ")]
    lists = (
        "data.train=YOUR_TRAIN.csv data.test=YOUR_TEST.csv data.root=FOLDER (lists with the columns file and label, "
        "of videos"
    )
    assert f"encoder.checkpoint={undisturbed} {lists} below FOLDER)" in output
    # what was opened and three of its samples, the run, the masking, the objective, a broken clip and the end
    assert len(lines) <= 9 and sum("warning: 00002/clip021: not_a_video" in line for line in lines) == 1, output


def test_metrics_hold_what_scripts_read(undisturbed: Path) -> None:
    rows = read_metrics(undisturbed)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    wanted = (
        "step samples loss loss_reconstruction loss_contrastive learning_rate grad_norm step_seconds data_seconds "
        "guidance_seconds clips_per_second skipped_samples"
    ).split()
    for row in rows:
        assert all(isinstance(row[name], (int, float)) for name in wanted), row
        assert row["loss"] == pytest.approx(row["loss_reconstruction"] + row["loss_contrastive"])
    assert rows[-1]["samples"] == STEPS * 8
    assert rows[-1]["loss_reconstruction"] < rows[0]["loss_reconstruction"]
    assert list((undisturbed / "tensorboard").glob("events*"))
    assert "clips/s" in status(str(undisturbed))


def test_broken_samples_are_counted_and_named(undisturbed: Path) -> None:
    named = [json.loads(line) for line in (undisturbed / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["key"].rsplit("/", 1)[-1]: row["reason"] for row in named}
    # 192 places over 45 samples: each of the three broken ones came four times or five
    assert set(reasons) == {"clip007", "clip021", "clip033"}
    assert reasons["clip033"] == "no_caption"
    assert all(4 <= sum(row["key"].endswith(name) for row in named) <= 5 for name in reasons)
    assert read_metrics(undisturbed)[-1]["skipped_samples"] == len(named)
    newest = folders.latest(undisturbed / "checkpoints")
    assert newest is not None and sum(checkpoint.Reader(newest).progress.skipped.values()) == len(named)


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (1, ["train.micro_batch_size=4", "data.workers=2"]),
        (2, ["train.micro_batch_size=4", "deepspeed.stage=2"]),
        (2, ["train.micro_batch_size=2", "deepspeed.stage=2", "data.workers=2"]),
        (4, ["train.micro_batch_size=2"]),
        (4, ["train.micro_batch_size=1", "deepspeed.stage=2"]),
    ],
)
def test_the_same_data_and_curve_in_any_layout(
    config: Path, undisturbed: Path, world_size: int, overrides: list[str]
) -> None:
    pretrain(config, *overrides, world_size=world_size)
    there, here = losses(undisturbed), losses(config.parent / "run")
    assert [row[:2] for row in here] == [row[:2] for row in there], "keys, crops, captions or masks differ"
    assert max(abs(a - b) for one, two in zip(here, there, strict=True) for a, b in zip(one[2:], two[2:])) < 1e-4


def on_the_board(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in board.Scalars("loss")]


def wait_for(condition: object, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def start(config: Path) -> Started:
    return Started(words(config), environment(), ROOT)


def test_three_kills_leave_no_trace_in_the_curve(config: Path, undisturbed: Path) -> None:
    folder = config.parent / "run"
    checkpoints = folder / "checkpoints"

    def steps_made() -> int:
        return len(read_metrics(folder)) if (folder / "metrics.jsonl").is_file() else 0

    conditions = [
        lambda: steps_made() >= 8,  # between checkpoints
        lambda: any(checkpoints.glob(".writing-00000012/state-*")),  # while one is being written
        lambda: steps_made() >= 20,
    ]
    for condition in conditions:
        process = start(config)
        wait_for(condition)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert folders.steps_in(checkpoints)[-1] in (12, 18), "that of step 18 may still be in writing"
    pretrain(config)
    assert losses(folder) == losses(undisturbed)
    report, equal = compare(str(undisturbed), str(folder))
    assert equal and "equal to the last bit" in report
    assert not list(checkpoints.glob(".writing-*"))
    boards = on_the_board(undisturbed), on_the_board(folder)
    assert boards[0] == boards[1] and [step for step, _ in boards[0]] == list(range(1, STEPS + 1))
    assert (folder / "skipped.jsonl").read_text() == (undisturbed / "skipped.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_with_a_checkpoint_and_the_requeue_code(
    config: Path, undisturbed: Path, number: signal.Signals
) -> None:
    folder = config.parent / "run"
    process = start(config)
    wait_for(lambda: (folder / "metrics.jsonl").is_file() and len(read_metrics(folder)) >= 3)
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == 85
    assert folders.steps_in(folder / "checkpoints")[-1] == len(read_metrics(folder))
    pretrain(config)
    assert losses(folder) == losses(undisturbed)
    newest = folders.latest(folder / "checkpoints")
    assert newest is not None
    allowed = newest.stat().st_mode & 0o666
    assert {file.stat().st_mode & 0o777 for file in newest.glob("state-*")} == {allowed}


def steps_made(folder: Path) -> int:
    return len(read_metrics(folder)) if (folder / "metrics.jsonl").is_file() else 0


def test_a_closed_terminal_stops_with_a_checkpoint(config: Path, undisturbed: Path) -> None:
    """Its SIGHUP goes to the data workers too, and what is printed from then on fails."""
    folder, (ours, theirs) = config.parent / "run", pty.openpty()

    def at_the_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests, too, may run under nohup

    process = subprocess.Popen(
        command(1, *words(config, "data.workers=2")),
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=at_the_terminal,
    )
    os.close(theirs)
    wait_for(lambda: steps_made(folder) >= 3)
    os.close(ours)
    assert process.wait(timeout=60) == 85
    assert folders.steps_in(folder / "checkpoints")[-1] == steps_made(folder) < STEPS
    pretrain(config)
    assert losses(folder) == losses(undisturbed)


def test_a_half_written_checkpoint_is_never_picked_up(config: Path, undisturbed: Path) -> None:
    pretrain(config, "train.steps=20")
    root = config.parent / "run" / "checkpoints"
    newest = folders.latest(root)
    assert newest is not None
    (newest / "manifest.json").unlink()
    assert folders.latest(root) != newest
    file = next(folders.folder_of(root, 18).glob("state-*"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut short"):
        checkpoint.Reader(file.parent)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.stops=3"], ["train.stops: unknown key", "train.steps"]),
        (["data.shards=/nonexistent/shards"], ["/nonexistent/shards"]),
        (["guidance.towers=/nonexistent/clip"], ["guidance.towers=/nonexistent/clip", "no such folder"]),
        (["masking.recipe=text_guide"], ["text_guided"]),
        (["masking.visible_ratio=0.7"], ["masking.visible_ratio=0.7"]),
        (["data.size=30"], ["data.size=30", "patch"]),
        (["run.dir=/proc/nothing"], ["run.dir=/proc/nothing", "cannot be written"]),
        (["model.attention=flash"], ["model.attention=flash"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(config: Path, overrides: list[str], said: list[str]) -> None:
    done = pretrain(config, *overrides, code=2)
    assert "Traceback" not in done.stderr
    for word in said:
        assert word in done.stderr, done.stderr


def test_a_run_folder_of_another_configuration_is_refused(config: Path) -> None:
    pretrain(config, "train.steps=1")
    done = pretrain(config, "train.steps=1", "masking.mask_ratio=0.5", code=2)
    assert "masking.mask_ratio: 0.6 there, 0.5 here" in done.stderr
    pretrain(config, "train.steps=1", "data.workers=1")  # a difference that does not change the numbers


def test_too_many_broken_samples_stop_the_run(config: Path) -> None:
    done = pretrain(config, "data.max_skipped_share=0.01", code=2)
    assert "data.max_skipped_share=0.01" in done.stderr and "no_caption" in done.stderr


def test_captions_that_lack_are_counted_before_a_run_and_not_again(config: Path, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_bytes(encode_video(moving_texture(number), 12))
    (tmp_path / "list.csv").write_text("file,caption\n0.mp4,\n1.mp4,one\n2.mp4,two\n3.mp4,three\n")
    given = [f"data.shards={tmp_path / 'list.csv'}", "train.steps=1"]
    assert "1 of 4 clips without a caption" in pretrain(config, *given, code=2).stderr
    pretrain(config, *given, "data.max_skipped_share=1")
    assert "no step was left" in pretrain(config, *given).stdout
    run(1, ["-m", "tgm_scale", "preflight", "--config", str(config), *given], 0)


def test_weights_of_another_run_start_a_new_one(config: Path, undisturbed: Path) -> None:
    other = config.parent / "other"
    pretrain(config, f"run.dir={other}", f"train.init_from={undisturbed}", "train.steps=2")
    assert losses(other)[0][3] < losses(undisturbed)[0][3], "it starts where the other ended"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("clips", ()),
        ("clips.csv", ()),
        ("clips.csv", ("data.synthetic.clips=8",)),
        ("*.tar", ("data.synthetic.clips=8",)),
        ("a.csv,b.csv", ("data.synthetic={clips: 8}",)),
    ],
)
def test_no_corpus_is_made_at_the_name_of_missing_clips(
    name: str, more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """configs/debug.yaml makes its corpus; a mistake in data.shards must not become one."""
    given = [f"data.shards={tmp_path / name}", f"run.dir={tmp_path / 'run'}", *more]
    assert cli.main(["pretrain", "--config", str(ROOT / "configs" / "debug.yaml"), *given]) == 2
    assert f"data.shards={tmp_path / name}: no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_is_made_where_it_is_asked_for_and_gone_on_with(tmp_path: Path) -> None:
    command = ["-m", "tgm_scale", "pretrain", "--config", "debug", f"data.shards={tmp_path}/made", "train.steps=1"]
    command += [f"run.dir={tmp_path}/run"]
    first = run(1, [*command, "data.synthetic.clips=8"])
    assert f"there is no {tmp_path}/made: making a corpus of 8 clips there" in first.stdout
    assert "all 1 steps were done before" in run(1, command).stdout
