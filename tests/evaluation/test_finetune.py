"""Finetuning: groups of parameters, drop path, averages; a run that is stopped, goes on elsewhere, and is tested."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import launch
import pytest
import torch
from made_finetune import CLIP, SIZE, STEPS, configuration, losses

from tgm_scale import cli
from tgm_scale.checkpoints import beside, ema
from tgm_scale.checkpoints.checkpoint import Reader
from tgm_scale.checkpoints.folders import latest, steps_in
from tgm_scale.contracts import Grid
from tgm_scale.conversion.read import read
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.demo.corpus.make import SyntheticSpec, make_sample
from tgm_scale.evaluation.settings import load_finetune
from tgm_scale.finetuning.classifier import initial_model, layer_groups
from tgm_scale.models.classifier import HeadNorm, VideoClassifier
from tgm_scale.models.patches import interpolated_table, sine_cosine_table
from tgm_scale.models.vit import ModelOptions, ModelSize, run_blocks
from tgm_scale.runs.status import status


def test_the_rate_falls_from_the_head_down_and_one_dimensional_values_do_not_decay() -> None:
    module = VideoClassifier(SIZE, 4, 32, classes=5)
    groups = layer_groups(module, 0.05, 0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    named = dict(module.named_parameters())
    assert len(scale) == len(named) == sum(len(group["params"]) for group in groups)
    for name, wanted in {
        "head.weight": 1.0,
        "fc_norm.weight": 1.0,
        "blocks.2.mlp.fc1.weight": 0.5,
        "blocks.0.attn.q_bias": 0.125,
        "patch_embed.proj.weight": 0.0625,
    }.items():
        assert scale[id(named[name])] == wanted, name
    for name, parameter in named.items():
        assert decay[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0), name


def test_drop_path_is_keyed_by_the_clip_and_right_in_the_mean() -> None:
    model = VideoClassifier(SIZE, 4, 32, classes=5, options=ModelOptions(drop_path=0.5))
    seeds = torch.arange(6)
    assert torch.equal(model.eval()(CLIP, seeds), model(CLIP)), "none in a test"
    model.train()
    whole = model(CLIP, seeds)
    assert not torch.allclose(whole, model(CLIP))
    torch.testing.assert_close(model(CLIP[2:4], seeds[2:4]), whole[2:4])  # whatever the batch
    checkpointed = VideoClassifier(
        SIZE, 4, 32, classes=5, options=ModelOptions(drop_path=0.5, activation_checkpointing=True)
    ).train()
    torch.testing.assert_close(checkpointed(CLIP, seeds), whole)

    one = ModelSize(24, 1, 2, 48, 0, 0, 0, 0, patch=8)
    first = VideoClassifier(one, 4, 32, classes=5, options=ModelOptions(drop_path=0.9)).train()
    assert torch.equal(first(CLIP, seeds), first(CLIP)), "the first block is never left out"
    scales = model._drop_path_scales(torch.arange(4000), torch.float32)
    dropped = run_blocks(model.blocks, torch.ones(4000, 1, 24), False, scales)
    kept_all = run_blocks(model.blocks, torch.ones(1, 1, 24), False)
    assert (dropped.mean(0) - kept_all[0]).abs().max() < 0.15 * kept_all.abs().max()


def test_the_average_is_the_recurrence_and_comes_back(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 1, bias=False)
    average = ema.Average(module.named_parameters, 0.9, tmp_path)
    norm = HeadNorm.begin(1, torch.device("cpu"))
    for value in (1.0, 5.0):
        module.weight.data.fill_(value)
        average.update()
        norm = norm.updated(torch.tensor([[value], [0.0]], dtype=torch.float64), 0.9)
    average.write(2, [])
    average.write(3, [2])
    expected = torch.full((1, 2), (0.9 * 1 + 5) / 1.9)
    torch.testing.assert_close(ema.read(tmp_path, 2)["weight"], expected)
    torch.testing.assert_close(norm.mean_and_scale()[0], expected[0, :1], msg="the norm's averages go with it")
    resumed = ema.Average(module.named_parameters, 0.9, tmp_path)
    resumed.read(3)
    for one in (average, resumed):
        module.weight.data.fill_(2.0)
        one.update()
    assert torch.equal(average._values["weight"], resumed._values["weight"])
    average.write(4, [3])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ema-00000003.safetensors", "ema-00000004.safetensors"]
    beside.write(tmp_path, "ema", 5, [], {"weight": expected})  # an earlier version's, without a count
    resumed.read(5)
    resumed.update()
    torch.testing.assert_close(resumed._values["weight"], 0.9 * expected + 0.1 * 2.0)
    with pytest.raises(ValueError, match=r"ema-00000009.safetensors: missing"):
        average.read(9)


SLOW_DISK = """
import sys
from tgm_scale import cli
from tgm_scale.checkpoints.saver import Saver
Saver.written = lambda self: False  # each checkpoint is on its way still when the next one begins
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_stopped_run_goes_on_at_another_world_size_and_stage_and_ends_the_same(
    shards: str, checkpoint: Path, tmp_path: Path
) -> None:
    command = ["-m", "tgm_scale", "finetune", "--config", str(configuration(tmp_path, shards, checkpoint))]
    first, second = tmp_path / "run", tmp_path / "again"
    (tmp_path / "slow_disk.py").write_text(SLOW_DISK)
    launch.run(1, [str(tmp_path / "slow_disk.py"), *command[2:]])
    steps = steps_in(first / "checkpoints")
    assert steps == [1, 2, 3, 4] and all(ema.file_of(first, step).is_file() for step in steps)
    command.append(f"run.dir={second}")
    launch.run(2, [*command, "deepspeed.stage=2", "train.max_minutes=1e-9"], code=85)
    assert len(losses(second)) == 1 and not (second / "results.json").exists()
    launch.run(1, command)
    assert losses(second) == pytest.approx(losses(first), abs=1e-5) and len(losses(first)) == STEPS
    digests = [
        [json.loads(line)["data_digest"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (first, second)
    ]
    assert digests[0] == digests[1]

    results = json.loads((first / "results.json").read_text())
    assert results["figures"]["top1"]["clips"] == 37 and results["facts"]["views"].startswith(
        "2 windows x 3 squares, each "
    )
    weights = read(first)
    assert weights.kind == "classifier" and weights.labels == ("circle", "cross", "ring", "square", "star", "triangle")
    newest = latest(first / "checkpoints")
    assert newest is not None
    trained = Reader(newest).weights()
    exports_what_was_tested(first, trained, tmp_path)
    assert any((trained[name] - value).abs().max() > 0 for name, value in ema.read(first, STEPS).items())
    a_test_that_overflows_is_none(first, command)


def test_a_closed_terminal_stops_with_a_checkpoint(shards: str, checkpoint: Path, tmp_path: Path) -> None:
    more = [f"{key}={10**5}" for key in ("train.steps", "checkpoint.every")]
    file, run = configuration(tmp_path, shards, checkpoint), tmp_path / "run"
    process = subprocess.Popen(
        launch.command(1, "-m", "tgm_scale", "finetune", "--config", str(file), *more, "finetune.ema=null"),
        env=launch.environment(),
        cwd=launch.ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests, too, may run under nohup
    )
    end = time.monotonic() + 60
    while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_bytes().splitlines()) < 2:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 85
    assert steps_in(run / "checkpoints") == [len(losses(run))] and not (run / "results.json").exists()


def exports_what_was_tested(run: Path, trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A run of finetune.ema: results.json is of the averaged weights, and so are all that read it."""
    from tgm_scale.conversion.convert import convert

    averaged = ema.read(run, STEPS)
    file = convert(read(run), tmp_path / "tested.pth", "videomae-finetune")
    assert all(torch.equal(file.written.state[name], value) for name, value in averaged.items())
    assert any("averaged weights of ema-00000004.safetensors" in note for note in read(run).notes)
    raw = read(run, raw=True)
    assert all(torch.equal(raw.state[name], value) for name, value in trained.items())
    assert any("not the averaged ones" in note for note in raw.notes)
    average = ema.file_of(run, STEPS)
    average.rename(average.with_suffix(".away"))
    with pytest.raises(ValueError, match=r"ema-00000004.safetensors: missing: .*--raw"):
        read(run / "checkpoints" / f"step-{STEPS:08d}")
    average.with_suffix(".away").rename(average)


def a_test_that_overflows_is_none(run: Path, command: list[str]) -> None:
    """Averaged weights that are finite, with products that are not, are tested anew: code 2, with the first layer."""
    from safetensors.torch import load_file, save_file

    (run / "results.json").unlink()
    shutil.rmtree(run / "test")
    weights = load_file(ema.file_of(run, STEPS))
    for layer in ("fc1", "fc2"):
        weights[f"blocks.0.mlp.{layer}.weight"] *= 1e25
    save_file(weights, ema.file_of(run, STEPS))
    said = launch.run(1, [*command, f"run.dir={run}"], code=2).stderr
    assert "first in what blocks.0.mlp.fc2 gives" in said and not (run / "results.json").exists()


def test_a_pretrained_encoder_comes_in_and_the_rest_is_fresh(tmp_path: Path, shards: str, checkpoint: Path) -> None:
    from tgm_scale.conversion.convert import convert
    from tgm_scale.conversion.key_maps import ModelMetadata
    from tgm_scale.conversion.weights import Weights
    from tgm_scale.models.pretraining import MaskedVideoAutoencoder
    from tgm_scale.models.vit import SIZES

    source = MaskedVideoAutoencoder(SIZES["tiny"], 4, 32, options=ModelOptions("sdpa"), seed=5).state_dict()
    file = tmp_path / "tiny.safetensors"
    convert(Weights.of("pretraining", source, ModelMetadata(4, 2, 4, 32), []), file, "safetensors")
    config = load_finetune(str(configuration(tmp_path, shards, checkpoint)), [f"train.init_from={file}"])
    module, positions, notes = initial_model(config, ["a", "b"], None)
    assert positions is None
    for name, value in module.state_dict().items():
        if name.startswith(("patch_embed", "blocks")):
            assert torch.equal(value, source[f"encoder.{name}"]), name
    assert notes[-1] == "fresh weights: fc_norm.bias, fc_norm.weight, head.bias, head.weight"
    table = sine_cosine_table(2 * 4 * 4, 128)
    assert torch.equal(module.positions.value, table), "the same clips: the same positions to the bit"
    for frames, side in ((8, 32), (4, 40), (4, 16)):
        overrides = [f"train.init_from={file}", f"data.frames={frames}", f"data.size={side}"]
        module, positions, _ = initial_model(
            load_finetune(str(configuration(tmp_path, shards, checkpoint)), overrides), ["a"], None
        )
        wanted = interpolated_table(Grid(2, 4, 4), Grid(frames // 2, side // 8, side // 8), 128)
        assert positions == (4, 32) and torch.equal(module.positions.value, wanted)


def test_frames_further_apart_than_in_pretraining_are_said(tmp_path: Path, shards: str, checkpoint: Path) -> None:
    from tgm_scale.conversion.convert import convert
    from tgm_scale.conversion.key_maps import ModelMetadata
    from tgm_scale.conversion.weights import Weights
    from tgm_scale.models.pretraining import MaskedVideoAutoencoder
    from tgm_scale.models.vit import SIZES

    source = MaskedVideoAutoencoder(SIZES["tiny"], 4, 32, options=ModelOptions("sdpa"), seed=5).state_dict()
    for name, data in (
        ("dense", {"stride": 2}),
        ("segments", {"stride": 2, "sampling": "segments"}),
        ("standard", {"stride": 2, "standardise": True}),
        ("local", {"stride": 2}),
        ("again", {"stride": 2}),
    ):
        again = {"train": {"init_from": "runs/before"}} if name == "again" else {}  # how that began is not known
        model = {} if name == "segments" else {"initialisation": "local" if name in ("local", "again") else "videomae"}
        stated = ModelMetadata(4, 2, 4, 32, None, {"data": data, "model": model, **again})
        convert(Weights.of("pretraining", source, stated, []), tmp_path / name, "safetensors")
    file = str(configuration(tmp_path, shards, checkpoint))
    strides = "warning: trained before on frames 2 apart, and here on data.stride=3; data.stride=2 is as before"
    whole = "warning: trained before on frames of whole clips, and here they are 3 apart: data.sampling=segments takes"
    standardise = "warning: trained before with data.standardise=true, and here with "
    begun = "warning: trained before from model.initialisation="
    for origin, given, wanted in (
        ("dense", "data.stride=2", None),
        ("dense", "data.stride=3", strides),
        ("dense", "data.sampling=segments", None),
        ("segments", "data.stride=3", f"{whole} them as there"),  # its stride was not used
        ("segments", "data.sampling=segments", None),
        ("standard", "data.stride=2", f"{standardise}false; data.standardise=true is as before"),
        ("again", "data.stride=2", None),
        ("local", "data.stride=2", f"{begun}local, and these weights keep that: this run's videomae is for training"),
    ):
        config = load_finetune(file, [f"train.init_from={tmp_path}/{origin}", "data.stride=3", given])
        notes = initial_model(config, ["a", "b"], None).notes
        assert [note.removesuffix(" from scratch") for note in notes if note.startswith("warning")] == (
            [wanted] if wanted else []
        ), (origin, given)


def test_other_clips_than_the_pretrainings_go_on_are_tested_and_converted_at_the_same_positions(
    tmp_path: Path, shards: str, checkpoint: Path
) -> None:
    """Four times the tokens in space, half in time; a start again, the test and a reader have the positions."""
    from tgm_scale.conversion.convert import convert
    from tgm_scale.conversion.key_maps import ModelMetadata
    from tgm_scale.conversion.weights import Weights, build
    from tgm_scale.models.pretraining import MaskedVideoAutoencoder
    from tgm_scale.models.vit import SIZES

    source = MaskedVideoAutoencoder(SIZES["tiny"], 4, 32, options=ModelOptions("sdpa"), seed=5).state_dict()
    convert(Weights.of("pretraining", source, ModelMetadata(4, 2, 4, 32), []), tmp_path / "in", "safetensors")
    file, run = str(configuration(tmp_path, shards, checkpoint)), tmp_path / "run"
    clips = ["data.frames=2", "data.size=64", "finetune.ema=null", "finetune.test_spatial_views=1"]
    command = ["-m", "tgm_scale", "finetune", "--config", file, f"train.init_from={tmp_path / 'in'}", *clips]
    said = "interpolated in space and time from clips of 4 frames of 32 pixels to 2 frames of 64"
    assert f"positions: {said}" in launch.run(1, [*command, "train.max_minutes=1e-9"], code=85).stdout
    assert f"positions: {said}" in launch.run(1, command).stdout, "also where it goes on"
    results = json.loads((run / "results.json").read_text())
    assert results["facts"]["positions"] == said
    rows = (run / "predictions.jsonl").read_text()
    (run / "results.json").unlink()
    shutil.rmtree(run / "test")
    launch.run(1, command)
    assert json.loads((run / "results.json").read_text())["figures"] == results["figures"]
    assert (run / "predictions.jsonl").read_text() == rows

    wanted = interpolated_table(Grid(2, 4, 4), Grid(1, 8, 8), 128)
    weights = read(run)
    assert weights.positions == (4, 32) and torch.equal(build(weights).positions.value, wanted)
    convert(weights, tmp_path / "out", "safetensors")
    assert torch.equal(build(read(tmp_path / "out")).positions.value, wanted)
    for target in ("huggingface", "videomae-finetune", "timm"):
        with pytest.raises(ValueError, match=rf"--to {target}: .*interpolated from clips of 4 frames of 32 pixels"):
            convert(weights, tmp_path / target, target)
    again, positions, _ = initial_model(
        load_finetune(file, [f"train.init_from={tmp_path / 'out'}", "data.size=48"]), ["a"], None
    )
    assert positions == (4, 32), "of the pretraining, not of what was interpolated"
    assert torch.equal(again.positions.value, interpolated_table(Grid(2, 4, 4), Grid(2, 6, 6), 128))


def test_scratch_starts_as_a_pretraining_run_of_the_same_configuration(
    tmp_path: Path, shards: str, checkpoint: Path
) -> None:
    from tgm_scale.models.local_start import start_locally
    from tgm_scale.models.pretraining import MaskedVideoAutoencoder
    from tgm_scale.models.vit import SIZES

    file = str(configuration(tmp_path, shards, checkpoint))
    model = MaskedVideoAutoencoder(SIZES["tiny"], 4, 32, seed=0)
    for overrides in ([], ["model.initialisation=local"]):
        module, _, _ = initial_model(load_finetune(file, overrides), ["a", "b"], None)
        if overrides:
            start_locally(model)
        for name, value in module.state_dict().items():
            if name.startswith(("patch_embed", "blocks")):
                assert torch.equal(value, model.encoder.state_dict()[name]), name


def test_an_average_wants_whole_weights_wherever_the_stage_is_said(
    tmp_path: Path, shards: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under ZeRO-3 each process has parts: the average would be one of empty tensors."""
    file, engine = configuration(tmp_path, shards, checkpoint), tmp_path / "engine.json"
    engine.write_text('{"zero_optimization": {"stage": 3}}')
    assert cli.main(["finetune", "--config", str(file), f"deepspeed.config={engine}"]) == 2
    assert "engine.json: zero_optimization.stage=3: finetune.ema averages" in capsys.readouterr().err
    assert cli.main(["finetune", "--config", str(file), f"deepspeed.config={engine}", "model.compile=true"]) == 2
    assert "model.compile=true does not go with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.micro_batch_size=2", "is not a multiple of 4: data.repeated_augmentation=2 clips"),
        ("deepspeed.stage=3", "deepspeed.stage=3: finetune.ema averages whole weights"),
        ("finetune.mixpu=0", "finetune.mixpu: unknown key; did you mean finetune.mixup?"),
        ("data.train=nowhere.csv", "data.train=nowhere.csv: no such list of videos"),
        ("finetune.rand_augment=much", "timm does not know it"),
        ("data.size=30", "data.size=30 is not a multiple of the model's patch"),
    ],
)
def test_mistakes_end_with_code_2(
    tmp_path: Path, shards: str, checkpoint: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = configuration(tmp_path, shards, checkpoint)
    assert cli.main(["finetune", "--config", str(file), override]) == 2
    assert message in capsys.readouterr().err


def test_what_has_no_label_is_told_wherever_the_run_is_looked_at(tmp_path: Path, checkpoint: Path) -> None:
    with ShardWriter(tmp_path / "some", clips_per_shard=100) as writer:
        for index in range(8):
            key, members = make_sample(index, SyntheticSpec(size=32, frames=8, seed=1, mode="one_mover"))
            writer.write(key, members | ({"json": {"caption": "no truth here"}} if index == 2 else {}))
    file = configuration(tmp_path, str(tmp_path / "some"), checkpoint)
    assert cli.main(["finetune", "--config", str(file), "train.steps=1", "optim.warmup_share=0"]) == 0
    found = json.loads((tmp_path / "run/data.json").read_text())
    assert [corpus["left_out"] for corpus in found] == [{"no_label": 1}] * 2
    assert found[0]["left_out_share"] == 0.125
    assert "some (train): 1 no_label; some (test): 1 no_label, see left_out.jsonl" in status(str(tmp_path / "run"))
