"""A decoder with cross-attention in conversion: kept by our own format, dropped or refused by the others, in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_weights import SMALL, equal, made
from safetensors.torch import load_file, save_file

from tgm_scale import cli
from tgm_scale.conversion.convert import convert
from tgm_scale.conversion.read import read, read_initial
from tgm_scale.conversion.weights import encoder_of, outputs
from tgm_scale.evaluation.features import FrozenEncoder

CROSS = replace(SMALL, decoder_attention="cross")


def test_our_format_holds_it_and_names_alone_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = made("pretraining", CROSS)
    assert weights.size == CROSS
    save_file(weights.state, tmp_path / "bare")  # nothing is said beside the tensors
    words = ["--heads", "3", "--decoder-heads", "2", "--frames", "8", "--size", "32", "--to", "safetensors"]
    assert cli.main(["convert", str(tmp_path / "bare"), str(tmp_path / "out"), *words]) == 0
    assert "2 heads, cross-attention" in capsys.readouterr().out
    back = read(tmp_path / "out")
    assert back.size == CROSS and equal(back.state, weights.state)
    torch.testing.assert_close(outputs(back), outputs(weights))


@pytest.mark.parametrize("target", ["videomae", "huggingface"])
def test_formats_without_a_place_for_it_refuse_and_name_the_ways_out(target: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"--to {target}: .*model.decoder_attention=cross.*safetensors.*timm.*--classes"
    ):
        convert(made("pretraining", CROSS), tmp_path / "out", target)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("target", "classes"), [("timm", None), ("huggingface", 4), ("videomae-finetune", 4)])
def test_the_encoder_goes_everywhere_without_the_decoder(target: str, classes: int | None, tmp_path: Path) -> None:
    cross, usual = (made("pretraining", size) for size in (CROSS, SMALL))
    same = replace(cross, state={**cross.state, **encoder_of(usual).state})
    done = convert(same, tmp_path / "cross", target, classes)
    assert "decoder.context_norm.weight" in done.left_out and done.written.size == SMALL.without_decoder()
    if target == "timm":
        convert(usual, tmp_path / "usual", target)
        assert equal(*(load_file(tmp_path / name) for name in ("cross", "usual")))


@pytest.mark.parametrize(("there", "here"), [("cross", "self"), ("self", "cross")])
def test_a_start_from_the_other_decoder_takes_the_encoder_and_says_so(there: str, here: str, tmp_path: Path) -> None:
    convert(made("pretraining", replace(SMALL, decoder_attention=there)), tmp_path / "in", "safetensors")
    initial = read_initial(str(tmp_path / "in"), replace(SMALL, decoder_attention=here))
    assert f"decoder_attention {there} there, {here} here" in initial.report[-1]
    names = {name.removeprefix("model.").split(".")[0] for name in initial.weights}
    assert names == {"encoder", "projection", "log_scale"}


def test_a_start_from_the_same_decoder_takes_all(tmp_path: Path) -> None:
    weights = made("pretraining", CROSS)
    convert(weights, tmp_path / "in", "safetensors")
    found = read_initial(str(tmp_path / "in"), CROSS).weights
    assert {name.removeprefix("model.") for name in found} == weights.state.keys()


def test_features_are_those_of_the_encoder(tmp_path: Path) -> None:
    weights = made("pretraining", CROSS)
    save = {"whole": weights, "encoder": encoder_of(weights)}
    for name, one in save.items():
        convert(one, tmp_path / name, "safetensors")
    video = torch.randint(256, (2, 3, 8, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = [FrozenEncoder.load(tmp_path / name)(video) for name in save]
    assert torch.equal(*found)


def test_a_lost_tensor_is_named(tmp_path: Path) -> None:
    state = made("pretraining", CROSS).state
    del state["decoder.blocks.1.attn.k.weight"]
    save_file(state, tmp_path / "bare")
    with pytest.raises(ValueError, match=r"missing \['decoder.blocks.1.attn.k.weight'\], unknown none"):
        read(tmp_path / "bare")
