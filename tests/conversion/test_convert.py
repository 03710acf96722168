"""Writing: ours -> format -> ours bit for bit, outputs checked, nothing left where anything fails; the tool."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign_checkpoints import image_mae, videomae_pretraining
from made_weights import FRAMES, SIDE, SMALL, equal, made, stated
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tgm_scale import cli
from tgm_scale.commands.convert import FORMATS
from tgm_scale.conversion import convert as conversion
from tgm_scale.conversion.convert import TARGETS, convert
from tgm_scale.conversion.key_maps import EXTRAS, ModelKind
from tgm_scale.conversion.mae_st import to_video
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import Weights, without_extras
from tgm_scale.models.patches import sine_cosine_table

KINDS: tuple[ModelKind, ...] = ("pretraining", "classifier", "encoder")
ROUND_TRIPS = [(kind, target) for target, held in TARGETS.items() for kind in held.kinds if target != "timm"]
Capture = pytest.CaptureFixture[str]


def main(arguments: Sequence[str]) -> int:
    return cli.main(["convert", *arguments])


@pytest.mark.parametrize(("kind", "target"), ROUND_TRIPS)
def test_ours_to_format_to_ours_changes_no_bit(kind: ModelKind, target: str, tmp_path: Path) -> None:
    weights = made(kind)
    done = convert(weights, tmp_path / "out", target)
    back = read(tmp_path / "out")
    kept = weights if target == "safetensors" else without_extras(weights)
    assert equal(back.state, kept.state)
    assert (back.kind, back.size, back.frames, back.image_size) == (kind, kept.size, FRAMES, SIDE)
    assert done.left_out == [name for name in weights.state if name not in kept.state]
    assert done.difference < (5e-5 if target == "huggingface" else 1e-6)  # kernels differ with a tensor's alignment
    assert done.largest > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_timms_own_blocks_give_our_outputs_and_no_bit_changes(kind: ModelKind, tmp_path: Path) -> None:
    weights = made(kind)
    done = convert(weights, tmp_path / "out", "timm")
    assert done.difference < 2e-5 * done.largest
    assert any(name.endswith("patch_embed.proj.weight") for name in done.left_out)
    file = load_file(tmp_path / "out")
    assert not file["blocks.0.attn.qkv.bias"].chunk(3)[1].any()
    with safe_open(tmp_path / "out", framework="pt") as stream:
        assert "No timm model loads this file" in json.loads(stream.metadata()["tgm_scale"])["note"]
    back = to_video(file, tubelet=2)
    prefix = "" if kind == "classifier" else "encoder."
    for i in range(SMALL.depth):
        ours = {name: weights.state[f"{prefix}blocks.{i}.attn.{name}"] for name in ("qkv.weight", "q_bias", "v_bias")}
        theirs = {part: back[f"blocks.{i}.attn.{part}"] for part in ("q.weight", "k.weight", "v.weight")}
        assert torch.equal(torch.cat(list(theirs.values())), ours["qkv.weight"])
        assert torch.equal(back[f"blocks.{i}.attn.q.bias"], ours["q_bias"])
        assert torch.equal(back[f"blocks.{i}.attn.v.bias"], ours["v_bias"])
        assert torch.equal(file[f"blocks.{i}.mlp.fc1.weight"], weights.state[f"{prefix}blocks.{i}.mlp.fc1.weight"])


def test_the_videomae_file_is_what_its_scripts_look_for(tmp_path: Path) -> None:
    weights = made("pretraining")
    convert(weights, tmp_path / "a.pth", "videomae")
    contents = torch.load(tmp_path / "a.pth", weights_only=True)
    wanted = videomae_pretraining(48, 3, 32, 2, patch=8)
    assert contents["model"].keys() == wanted.keys()
    assert not set(EXTRAS) & contents["model"].keys()


@pytest.mark.parametrize(
    ("name", "target", "other"),
    [
        ("x.pth", "timm", "x.safetensors"),
        ("x.PT", "safetensors", "x.safetensors"),
        ("x.safetensors", "videomae", "x.pth"),
        ("x.bin", "huggingface", "x"),
    ],
)
def test_a_name_that_is_of_another_kind_of_file_is_refused(name: str, target: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}: --to {target} writes .*: name it {tmp_path / other}$"):
        convert(made("pretraining"), tmp_path / name, target)
    assert not any(tmp_path.iterdir())


def test_safetensors_holds_everything_and_what_to_know(tmp_path: Path) -> None:
    weights = made("pretraining")
    done = convert(weights, tmp_path / "all", "safetensors")
    assert done.left_out == [] and equal(load_file(tmp_path / "all"), weights.state)
    with safe_open(tmp_path / "all", framework="pt") as stream:
        facts = json.loads(stream.metadata()["tgm_scale"])
    assert facts["model"]["heads"] == 3 and facts["frames"] == FRAMES and facts["config"] == {"run": {"seed": 3}}


@pytest.mark.parametrize("kind", ["pretraining", "encoder"])
@pytest.mark.parametrize("target", ["videomae-finetune", "huggingface"])
def test_a_fresh_head_on_an_encoder(kind: ModelKind, target: str, tmp_path: Path) -> None:
    weights = made(kind)
    done = convert(weights, tmp_path / "out", target, classes=7)
    back = read(tmp_path / "out")
    assert (back.kind, back.classes) == ("classifier", 7)
    assert torch.equal(back.state["blocks.2.mlp.fc2.bias"], weights.state["encoder.blocks.2.mlp.fc2.bias"])
    assert {"encoder.norm.weight", "encoder.norm.bias"} <= set(done.left_out)
    assert (back.state["fc_norm.weight"] == 1).all() and back.state["head.weight"].std() > 0.01


@pytest.mark.parametrize("target", ["safetensors", "huggingface"])
def test_who_may_read_the_folder_may_read_what_is_written(target: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    convert(made("pretraining"), tmp_path / "out", target)
    written = [*(tmp_path / "out").iterdir()] if (tmp_path / "out").is_dir() else [tmp_path / "out"]
    assert {file.stat().st_mode & 0o777 for file in written} == {0o644}


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    weights = made("pretraining")
    for target in ("videomae", "safetensors"):
        for name in ("one", "other"):
            convert(weights, tmp_path / f"{target}-{name}", target)
        assert (tmp_path / f"{target}-one").read_bytes() == (tmp_path / f"{target}-other").read_bytes()


@pytest.mark.parametrize(
    ("kind", "target", "classes", "message"),
    [
        (
            "classifier",
            "videomae",
            None,
            "'classifier'; --to videomae-finetune, huggingface, timm, safetensors hold it",
        ),
        ("pretraining", "videomae-finetune", None, r"--classes N gives an encoder a fresh head"),
        ("encoder", "huggingface", None, "holds a model of kind pretraining or classifier"),
        ("classifier", "huggingface", 7, "not for --to huggingface of a model of kind 'classifier'"),
        ("pretraining", "videomae", 7, "not for --to videomae"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    kind: ModelKind, target: str, classes: int | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(made(kind), tmp_path / "out", target, classes)
    assert not list(tmp_path.iterdir())


def test_an_output_is_never_written_over_and_its_folder_never_made(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        convert(made("encoder"), tmp_path / "there", "safetensors")
    with pytest.raises(ValueError, match="there is no folder"):
        convert(made("encoder"), tmp_path / "absent" / "out", "safetensors")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("target", ["safetensors", "huggingface"])
def test_what_another_conversion_wrote_meanwhile_is_kept(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ends while this one compares outputs."""
    outputs = conversion.outputs

    def meanwhile(weights: Weights) -> torch.Tensor:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "config.json").write_text("theirs")
        return outputs(weights)

    monkeypatch.setattr(conversion, "outputs", meanwhile)
    with pytest.raises(ValueError, match="out: exists already"):
        convert(made("pretraining"), tmp_path / "out", target)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.json").read_text() == "theirs"


def test_nothing_is_kept_where_the_outputs_differ(tmp_path: Path) -> None:
    """A mean token that hardly varies: here transformers' eps of 1e-5 in fc_norm, 1e-6 with us, changes the scores."""
    weights = made("classifier", replace(SMALL, depth=1))
    positions = sine_cosine_table(64, SMALL.width).mean(0)
    constant = {
        name: torch.zeros_like(x) for name, x in weights.state.items() if "norm" not in name and "head" not in name
    }
    constant["blocks.0.mlp.fc2.bias"] = 1e-3 * positions.roll(1) - positions
    flat = Weights.of("classifier", weights.state | constant, stated(weights.size), [])
    assert convert(flat, tmp_path / "exact", "videomae-finetune").difference < 1e-6
    with pytest.raises(RuntimeError, match="what was written gives other outputs"):
        convert(flat, tmp_path / "out", "huggingface")
    assert [path.name for path in tmp_path.iterdir()] == ["exact"]


def test_the_command_says_what_it_did(tmp_path: Path, capsys: Capture) -> None:
    convert(made("pretraining"), tmp_path / "in", "safetensors")
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--to", "huggingface", "--classes", "4"]) == 0
    said = capsys.readouterr().out
    assert "format: VideoMAE or this project, pretraining" in said
    assert "pretraining, 48 wide, 3 deep, 3 heads, tubelets of 2x8x8, decoder 32 wide, 2 deep, 2 heads" in said
    assert "left out" in said and "decoder.blocks (26 tensors)" in said and "projection.weight" in said
    assert "outputs on a fixed clip differ by" in said
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("options", "held"), [([], "blocks and norm"), (["--classes", "4"], "blocks, fc_norm and head")]
)
def test_the_command_says_what_a_file_of_timms_names_is_for(
    options: list[str], held: str, tmp_path: Path, capsys: Capture
) -> None:
    convert(made("pretraining"), tmp_path / "in", "safetensors")
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--to", "timm", *options]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"out holds {held} only, for timm's VisionTransformer" in last and "does not read it back" in last
    names = {name.split(".")[0] for name in load_file(tmp_path / "out")}
    assert names == set(held.replace(",", "").replace(" and", "").split())
    assert main([str(tmp_path / "out"), str(tmp_path / "back"), "--to", "safetensors"]) == 2


def test_the_command_reads_foreign_files(tmp_path: Path, capsys: Capture) -> None:
    file, out = str(tmp_path / "in"), str(tmp_path / "out")
    clip = ["--frames", "4", "--size", "32"]
    arguments = argparse.Namespace(num_frames=16, input_size=224)
    torch.save({"model": videomae_pretraining(32, 2, 16, 1), "args": arguments}, file)
    assert main([file, out, "--to", "huggingface"]) == 2
    assert "how many heads?" in capsys.readouterr().err
    assert main([file, out, "--to", "huggingface", "--heads", "4", "--decoder-heads", "2", *clip]) == 0
    assert "frames: 4 as asked for, the file says 16" in capsys.readouterr().out
    save_file(image_mae(32, 2, 16, 8), file)
    assert main([file, f"{out}2", "--to", "safetensors", "--heads", "4", *clip]) == 2
    assert "--lossy" in capsys.readouterr().err
    assert main([file, f"{out}2", "--to", "safetensors", "--heads", "4", "--lossy", *clip]) == 0
    assert read(f"{out}2").kind == "encoder"


def test_a_mistake_is_one_message_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "absent"), str(tmp_path / "out"), "--to", "timm"]) == 2
    assert "absent: cannot be read" in capsys.readouterr().err
    assert set(FORMATS) == set(TARGETS)
    with pytest.raises(SystemExit, match="2"):
        main(["a", "b", "--to", "onnx"])
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "tgm-scale convert runs/vitb exports/vitb --to huggingface" in capsys.readouterr().out
