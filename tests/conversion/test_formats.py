"""Detection by names, sizes from shapes, heads from what is stated, and every refusal."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign_checkpoints import videomae_finetuned, videomae_pretraining
from made_weights import SMALL, equal, made, stated
from safetensors.torch import save_file
from torch import Tensor

from tgm_scale.conversion.formats import detect
from tgm_scale.conversion.key_maps import ModelMetadata, size_of
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import Weights, build, fixed_clip, outputs
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import SIZES

HEADS = ModelMetadata(heads=4, decoder_heads=2)


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "file")
    return folder / "file"


def test_a_published_videomae_file_needs_no_word_on_its_heads(tmp_path: Path) -> None:
    weights = read(saved(videomae_pretraining(384, 12, 192, 4), tmp_path))
    assert (weights.kind, weights.size) == ("pretraining", SIZES["S"])
    assert not [note for note in weights.notes if "lost" in note]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *SIZES.items(),
        ("L as VideoMAE trained it", replace(SIZES["L"], decoder_depth=12)),
        ("H of V2", replace(SIZES["H"], decoder_width=512, decoder_mlp=2048)),
    ],
)
def test_size_and_heads_of_the_published_family(name: str, size: object) -> None:
    with torch.device("meta"):
        pretraining = MaskedVideoAutoencoder(size, 16, size.patch * 4).state_dict()
        classifier = VideoClassifier(size, 16, size.patch * 4, 7).state_dict()
    assert size_of("pretraining", pretraining, ModelMetadata()) == (size, [])
    found, _ = size_of("classifier", classifier, ModelMetadata())
    assert found == replace(size, decoder_width=0, decoder_depth=0, decoder_heads=0, decoder_mlp=0)


def test_heads_are_never_guessed(tmp_path: Path) -> None:
    file = saved(videomae_pretraining(32, 2, 16, 1), tmp_path)
    with pytest.raises(ValueError, match=r"how many heads\?.*\(width 32\): give --heads N"):
        read(file)
    with pytest.raises(ValueError, match=r"\(width 16\): give --decoder-heads N"):
        read(file, ModelMetadata(heads=4))
    with pytest.raises(ValueError, match="heads: 5 does not divide the width of 32"):
        read(file, ModelMetadata(heads=5, decoder_heads=2))
    assert read(file, HEADS).size.heads == 4


def test_what_the_user_says_goes_before_what_the_file_says_and_is_noted() -> None:
    weights = made("pretraining")
    agreed, notes = ModelMetadata(heads=6, frames=8).over(stated())
    assert (agreed.heads, agreed.decoder_heads, agreed.frames) == (6, SMALL.decoder_heads, 8)
    assert notes == ["heads: 6 as asked for, the file says 3"]
    assert Weights.of("pretraining", weights.state, agreed, notes).size.heads == 6
    with torch.device("meta"):
        state = VideoClassifier(SIZES["S"], 4, 32, 7).state_dict()
    _, remarks = size_of("classifier", state, ModelMetadata(heads=16))
    assert remarks == ["heads: 16 as stated; the published model of this shape has 6"]


def test_cosine_attention_is_refused(tmp_path: Path) -> None:
    state = videomae_pretraining(32, 2, 16, 1)
    state["encoder.blocks.1.attn.scale"] = torch.zeros(4, 1, 1)
    with pytest.raises(ValueError, match=r"cosine attention \(encoder.blocks.1.attn.scale\)"):
        read(saved(state, tmp_path), HEADS)


@pytest.mark.parametrize("name", ["encoder.pos_embed", "pos_embed"])
def test_learned_positions_are_refused_unless_their_loss_is_agreed_to(name: str, tmp_path: Path) -> None:
    state = videomae_pretraining(32, 2, 16, 1) if "encoder" in name else videomae_finetuned(32, 2, 5)
    file = saved(state | {name: torch.zeros(1, 1569, 32)}, tmp_path)
    with pytest.raises(ValueError, match=f"{name.split('.')[0]}: no place in this project's model.*--lossy"):
        read(file, HEADS)
    weights = read(file, HEADS, lossy=True)
    assert equal(weights.state, state)
    assert any("lost 1 tensors" in note for note in weights.notes)


@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_missing_and_unmapped_names_are_listed(kind: str, tmp_path: Path) -> None:
    state = videomae_pretraining(32, 2, 16, 1) if kind == "pretraining" else videomae_finetuned(32, 2, 5)
    prefix = "encoder." if kind == "pretraining" else ""
    del state[f"{prefix}blocks.0.norm1.bias"], state[f"{prefix}blocks.1.mlp.fc1.weight"]
    state[f"{prefix}blocks.0.gamma_1"] = torch.zeros(32)
    missing = re.escape(f"missing ['{prefix}blocks.0.norm1.bias', '{prefix}blocks.1.mlp.fc1.weight']")
    with pytest.raises(ValueError, match=missing + re.escape(f", unknown ['{prefix}blocks.0.gamma_1']")):
        read(saved(state, tmp_path), HEADS)


def test_a_lost_middle_block_is_listed(tmp_path: Path) -> None:
    state = videomae_finetuned(32, 3, 5)
    lost = sorted(name for name in state if name.startswith("blocks.1."))
    with pytest.raises(ValueError, match=re.escape(f"missing {lost}, unknown none")):
        read(saved({name: value for name, value in state.items() if name not in lost}, tmp_path), HEADS)


def test_shapes_and_values_are_checked() -> None:
    state = dict(made("pretraining").state)
    with pytest.raises(ValueError, match=r"decoder.norm.weight \[7\], wanted \[32\]"):
        Weights.of("pretraining", state | {"decoder.norm.weight": torch.zeros(7)}, stated(), [])
    with pytest.raises(ValueError, match=r"wanted \[width, 3, tubelet, patch, patch\], found \[48, 3, 8, 8\]"):
        Weights.of("pretraining", state | {"encoder.patch_embed.proj.weight": torch.zeros(48, 3, 8, 8)}, stated(), [])
    with pytest.raises(ValueError, match="not finite: mask_token"):
        Weights.of("pretraining", state | {"mask_token": torch.full((1, 1, 32), torch.nan)}, stated(), [])
    with pytest.raises(ValueError, match="2 names of classes for a head of 5"):
        made("classifier", labels=("a", "b"))


def test_a_classifier_without_a_head_gives_its_features(tmp_path: Path) -> None:
    state = videomae_finetuned(32, 2, 5)
    headless = {name: value for name, value in state.items() if not name.startswith("head.")}
    weights = read(saved(headless, tmp_path), ModelMetadata(4, frames=4, image_size=32))
    assert weights.classes == 0 and outputs(weights).shape == (1, 32)
    whole = Weights.of("classifier", state, ModelMetadata(4, frames=4, image_size=32), [])
    with torch.no_grad():
        assert torch.equal(outputs(weights), build(whole).features(fixed_clip(weights)))


def test_an_unknown_set_of_names_is_told_what_each_format_wants() -> None:
    with pytest.raises(ValueError, match=r"no known format: its 1 names begin \['a'\].*image ViT lacks"):
        detect({"a": torch.zeros(1)})
