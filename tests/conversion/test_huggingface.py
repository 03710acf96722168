"""Parity with transformers' VideoMAE on the same weights, video and mask; the maps; the exported folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_weights import CLASSES, FRAMES, SIDE, SMALL, autoencoder, equal, made, perturbed, stated
from safetensors.torch import load_file, save_file
from torch import Tensor

from tgm_scale.conversion import huggingface
from tgm_scale.conversion.convert import convert
from tgm_scale.conversion.huggingface import configuration, names, to_huggingface, to_ours
from tgm_scale.conversion.key_maps import ModelKind, own_names
from tgm_scale.conversion.read import read
from tgm_scale.conversion.statistics import into_patch_embedding
from tgm_scale.conversion.weights import Weights, build, fixed_clip, fixed_mask, outputs, without_extras
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import NORM_EPS, SIZES, ModelSize
from tgm_scale.objectives.reconstruction import reconstruction_error
from tgm_scale.runtime.compat import prepare_torchvision

KINDS: tuple[ModelKind, ...] = ("pretraining", "classifier")


def theirs(weights: Weights) -> Any:
    """The same model in transformers. Two norms have eps 1e-5 there whatever the configuration: set right."""
    with torch.device("meta"):
        other = huggingface.model_class(weights.kind)(configuration(weights))
    (other.fc_norm if weights.kind == "classifier" else other.decoder.norm).eps = NORM_EPS
    other.load_state_dict(to_huggingface(without_extras(weights)), assign=True)
    return other.eval()


def inputs(weights: Weights) -> dict[str, Tensor]:
    """The fixed clip as transformers takes it."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    given = {"pixel_values": (fixed_clip(weights).transpose(1, 2) / 255 - mean) / std}
    if weights.kind == "pretraining":
        _, target = fixed_mask(weights)
        tokens = target.shape[1] + fixed_mask(weights)[0].shape[1]
        given["bool_masked_pos"] = torch.zeros(1, tokens, dtype=torch.bool).scatter(1, target, True)
    return given


def version_4(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that transformers 4 gives the biases, which published files have."""
    return {
        name.replace("attention.query.bias", "attention.q_bias").replace("attention.value.bias", "attention.v_bias"): x
        for name, x in state.items()
    }


def test_outputs_loss_and_gradients_are_those_of_transformers() -> None:
    weights = without_extras(made("pretraining"))
    ours, other = autoencoder(), theirs(weights)
    out = ours(fixed_clip(weights), *fixed_mask(weights))
    loss = reconstruction_error(out.prediction_BMP, out.target_BMP).mean()
    expected = other(**inputs(weights))
    assert (out.prediction_BMP - expected.logits).abs().max() < 1e-5
    assert abs(loss.item() - expected.loss.item()) < 1e-6

    loss.backward()
    expected.loss.backward()
    gradients = {name: value.grad for name, value in other.named_parameters()}
    table = names("pretraining", SMALL.depth, SMALL.decoder_depth)
    assert gradients.keys() == {other for others in table.values() for other in others}
    for name, others in table.items():
        wanted = torch.cat([gradients[other] for other in others])
        assert wanted.abs().max() > 1e-5, name
        assert (ours.get_parameter(name).grad - wanted).abs().max() < 1e-4 * wanted.abs().max(), name


@pytest.mark.parametrize(("normalise_by", "by_patch"), [(None, True), ("patch", True), ("clip", False)])
def test_the_configuration_says_whose_targets_are_normalised(normalise_by: str | None, by_patch: bool) -> None:
    objective = {} if normalise_by is None else {"normalise_by": normalise_by}
    weights = replace(made("pretraining"), config={"objective": objective})
    assert configuration(weights).norm_pix_loss is by_patch


@pytest.mark.parametrize("size", ["S", "B", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_at_the_published_sizes(kind: ModelKind, size: str) -> None:
    weights = full_size(kind, SIZES[size])
    with torch.no_grad():
        expected = theirs(weights)(**inputs(weights)).logits
    assert expected.abs().max() > 0.1
    assert (outputs(weights) - expected).abs().max() < 1e-5


def full_size(kind: ModelKind, size: ModelSize) -> Weights:
    """First values with every bias and norm moved a little; two blocks by turns, which is quick to make."""
    two = replace(size, depth=2, decoder_depth=2)
    model = (
        MaskedVideoAutoencoder(two, FRAMES, 64) if kind == "pretraining" else VideoClassifier(two, FRAMES, 64, CLASSES)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    values = model.state_dict()
    state = {
        name: values[re.sub(r"blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) % 2}", name)]
        for name in own_names(kind, size.depth, size.decoder_depth)
    }
    return Weights.of(kind, state, replace(stated(size), image_size=64), [])


def test_wrong_heads_load_and_shift_the_outputs() -> None:
    """Why heads go through a configuration: the weights alone do not tell."""
    weights = without_extras(made("pretraining"))
    wrong = replace(weights, size=replace(SMALL, heads=6))
    with torch.no_grad():
        expected = theirs(weights)(**inputs(weights)).logits
        got = build(wrong)(fixed_clip(weights), *fixed_mask(weights)).prediction_BMP
    assert (got - expected).abs().max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_cover_every_weight_of_every_size(size: str, kind: ModelKind) -> None:
    dimensions = SIZES[size]
    side = dimensions.patch * 4
    with torch.device("meta"):
        if kind == "pretraining":
            ours = MaskedVideoAutoencoder(dimensions, 16, side).state_dict()
        else:
            ours = VideoClassifier(dimensions, 16, side, CLASSES).state_dict()
        weights = Weights(kind, ours, dimensions, 16, side)
        other = huggingface.model_class(kind)(configuration(weights)).state_dict()
    got = to_huggingface(weights)
    assert {name: value.shape for name, value in got.items()} == {name: value.shape for name, value in other.items()}


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_changes_no_bit(kind: ModelKind, version: int) -> None:
    weights = without_extras(made(kind))
    other = to_huggingface(weights)
    if version == 4:
        other = version_4(other)
        assert any(name.endswith("attention.q_bias") for name in other)
    assert equal(to_ours(other, kind), weights.state)


def test_missing_and_unknown_keys_are_listed() -> None:
    weights = without_extras(made("pretraining"))
    weights.state["encoder.blocks.0.attn.gamma"] = weights.state.pop("mask_token")
    with pytest.raises(ValueError, match=r"missing \['mask_token'\], unknown \['encoder.blocks.0.attn.gamma'\]"):
        to_huggingface(weights)
    state = to_huggingface(without_extras(made("pretraining")))
    del state["decoder.decoder_layers.0.output.dense.bias"]
    with pytest.raises(ValueError, match=r"missing \['decoder.decoder_layers.0.output.dense.bias'\], unknown none"):
        to_ours(state, "pretraining")


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_folder_is_read_by_both_sides(kind: ModelKind, tmp_path: Path) -> None:
    weights = made(kind, labels=("run", "walk", "wave", "jump", "bend"))
    folder = tmp_path / "out"
    done = convert(weights, folder, "huggingface")
    assert done.left_out == (["projection.weight", "log_scale"] if kind == "pretraining" else [])
    assert done.difference < 5e-5 < done.largest  # from the eps of two norms, 1e-5 in transformers
    saved = json.loads((folder / "config.json").read_text())
    assert saved["layer_norm_eps"] == 1e-6 and saved["use_mean_pooling"] == (kind == "classifier")
    assert kind == "pretraining" or saved["id2label"] == {
        "0": "run",
        "1": "walk",
        "2": "wave",
        "3": "jump",
        "4": "bend",
    }
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == list(IMAGENET_MEAN) and processor["image_std"] == list(IMAGENET_STD)
    back = read(folder)
    assert equal(back.state, done.written.state)
    assert (back.size, back.labels) == (done.written.size, done.written.labels)


def test_a_folder_of_version_5_names_and_a_file_of_version_4(tmp_path: Path) -> None:
    weights = without_extras(made("classifier"))
    configuration(weights).save_pretrained(tmp_path)
    torch.save(version_4(to_huggingface(weights)), tmp_path / "pytorch_model.bin")
    assert equal(read(tmp_path).state, weights.state)
    torch.save(to_huggingface(weights), tmp_path / "pytorch_model.bin")
    assert equal(read(tmp_path).state, weights.state)


def test_a_bf16_state_exports_in_float32(tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in made("pretraining").state.items()}
    convert(Weights.of("pretraining", state, stated(), []), tmp_path / "out", "huggingface")
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / "out" / "model.safetensors").values())


def test_the_exported_processor_gives_the_pixels_of_training(tmp_path: Path) -> None:
    from transformers import VideoMAEImageProcessor

    weights = made("pretraining")
    convert(weights, tmp_path / "out", "huggingface")
    frames = [frame.permute(1, 2, 0).numpy() for frame in fixed_clip(weights)[0].transpose(0, 1)]
    got = VideoMAEImageProcessor.from_pretrained(tmp_path / "out")(frames, return_tensors="pt").pixel_values
    torch.testing.assert_close(got[0], inputs(weights)["pixel_values"][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, "of a 'vit', wanted a 'videomae'"),
        ({"hidden_act": "relu"}, "hidden_act: found relu, input should be 'gelu'"),
        ({"num_attention_heads": 5}, "heads: 5 does not divide the width of 48"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    huggingface.write(without_extras(made("pretraining")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("mean_pooling", [False, True])
def test_a_model_without_a_head_is_read(mean_pooling: bool, tmp_path: Path) -> None:
    """VideoMAEModel: its tokens are our encoder's where it has its last norm, and our blocks' where it has none."""
    prepare_torchvision()
    from transformers import VideoMAEModel

    config = huggingface.configuration(made("pretraining"))
    config.use_mean_pooling = mean_pooling
    model = perturbed(VideoMAEModel(config)).eval()
    model.save_pretrained(tmp_path)
    weights = read(tmp_path)
    assert weights.kind == ("classifier" if mean_pooling else "encoder") and weights.classes == 0
    tokens = model(pixel_values=inputs(weights)["pixel_values"]).last_hidden_state
    if mean_pooling:
        expected = torch.nn.functional.layer_norm(tokens.mean(1), tokens.shape[-1:], eps=1e-6)
        assert any("without a norm after its blocks" in note for note in weights.notes)
    else:
        expected = tokens
    torch.testing.assert_close(outputs(weights), expected, atol=1e-4, rtol=1e-4)


def test_a_classifier_of_the_first_token_is_told_what_it_is_and_gives_its_encoder(tmp_path: Path) -> None:
    prepare_torchvision()
    from transformers import VideoMAEForVideoClassification

    config = huggingface.configuration(made("classifier"))
    config.use_mean_pooling = False
    model = perturbed(VideoMAEForVideoClassification(config)).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of the first token \(use_mean_pooling false\).*--lossy"):
        read(tmp_path)
    weights = read(tmp_path, lossy=True)
    tokens = model.videomae(pixel_values=inputs(weights)["pixel_values"]).last_hidden_state
    torch.testing.assert_close(outputs(weights), tokens, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", [True, False])
def test_a_folder_of_videomae_2s_own_code(head: bool, tmp_path: Path) -> None:
    source = made("classifier")
    state = {f"model.{name}": value for name, value in source.state.items() if head or not name.startswith("head.")}
    save_file(state, tmp_path / "model.safetensors")
    said = {"num_heads": 3, "img_size": SIDE, "all_frames": FRAMES, "cos_attn": False, "num_classes": 5 * head}
    config = {"model_type": "VideoMAEv2_Base", "model_config": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = read(tmp_path)
    assert (weights.frames, weights.image_size, weights.size.heads, weights.classes) == (FRAMES, SIDE, 3, 5 * head)
    assert all(equal({name: value}, {name: source.state[name]}) for name, value in weights.state.items())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_config": said | {"cos_attn": True}}))
    with pytest.raises(ValueError, match="cos_attn"):
        read(tmp_path)


def test_the_statistics_of_a_folder_of_videomae_2(tmp_path: Path) -> None:
    """Its kernel has another name; transformers' processors take 0.5 where their file names no mean."""
    from transformers import VideoMAEImageProcessor

    processor = VideoMAEImageProcessor()
    assert tuple(processor.image_mean) == tuple(processor.image_std) == (0.5, 0.5, 0.5)
    bias = "model.patch_embed.proj.bias"
    state = {"model.patch_embed.proj.weight": torch.ones(2, 3, 2, 4, 4), bias: torch.zeros(2)}
    assert equal(into_patch_embedding(state, tmp_path)[0], state), "ImageNet's where nothing is said"
    processor.save_pretrained(tmp_path)
    taken, notes = into_patch_embedding(state, tmp_path)
    black = ((0 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).view(3, 1, 1, 1)
    given = (taken["model.patch_embed.proj.weight"][0] * black).sum() + taken[bias][0]
    torch.testing.assert_close(given, torch.tensor(-96.0))
    assert "taken into the patch embedding" in notes[0]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"image_mean": [0.5], "image_std": "much"}, "wanted three means"),
        ({"image_mean": [0.5] * 2}, "wanted three means"),
        ({"image_std": [1, 0, 1]}, "three deviations above 0"),
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor without image_mean"),
    ],
)
def test_statistics_that_are_none_are_refused(said: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    state = {"patch_embed.proj.weight": torch.ones(2, 3, 2, 4, 4), "patch_embed.proj.bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=message):
        into_patch_embedding(state, tmp_path)


@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_what_transformers_has_no_field_for_comes_back(kind: ModelKind, tmp_path: Path) -> None:
    """The targets' normalisation, the stride and the order of the classes, which is not that of the alphabet."""
    labels = ("wave", "bend", "jump", "a", "run") if kind == "classifier" else None
    run = {"objective": {"normalise_by": "clip"}, "data": {"stride": 3, "shards": "somewhere"}, "model": {}}
    weights = replace(made(kind, labels=labels), config=run)
    convert(weights, tmp_path / "out", "huggingface")
    back = read(tmp_path / "out")
    assert back.config == {"objective": {"normalise_by": "clip"}, "data": {"stride": 3}}
    assert (back.labels, back.frames, back.image_size) == (labels, FRAMES, SIDE)
    assert any("normalised by the clip" in note for note in back.notes)
    assert "somewhere" not in (tmp_path / "out/config.json").read_text()


def test_classes_that_are_not_numbered_from_0_are_refused(tmp_path: Path) -> None:
    convert(made("classifier", labels=tuple("abcde")), tmp_path / "out", "huggingface")
    file = tmp_path / "out/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"id2label": {str(i + 1): x for i, x in enumerate("abcde")}}))
    with pytest.raises(ValueError, match="id2label: wanted the numbers from 0"):
        read(tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "changes", "pixels"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.4, 0.5, 0.6]}, None),
        ("processor_config.json", {"do_normalize": False}, lambda x: x / 255),
        ("preprocessor_config.json", {"rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3}, None),
        ("preprocessor_config.json", {"image_mean": 0.4, "image_std": 0.2}, lambda x: (x / 255 - 0.4) / 0.2),
        ("preprocessor_config.json", {"do_normalize": True, "image_mean": None}, lambda x: x / 127.5 - 1),
        ("preprocessor_config.json", {"image_processor_type": "VideoMAEImageProcessor"}, lambda x: x / 127.5 - 1),
    ],
)
def test_a_model_of_other_means_and_deviations_gives_its_own_outputs(
    file: str, changes: dict, pixels: Any, tmp_path: Path
) -> None:
    """The same clip, prepared by each side's own statistics."""
    source = made("classifier")
    convert(source, tmp_path / "out", "huggingface")
    assert equal(read(tmp_path / "out").state, source.state), "ImageNet's statistics change no bit"
    (tmp_path / "out/preprocessor_config.json").unlink()
    said = changes if file.startswith("pre") else {"image_processor": changes}
    (tmp_path / "out" / file).write_text(json.dumps(said))
    weights = read(tmp_path / "out")
    clip = fixed_clip(weights).transpose(1, 2).float()
    if pixels is None:
        mean, std = (torch.tensor(changes[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        given = (clip * changes.get("rescale_factor", 1 / 255) - mean) / std
    else:
        given = pixels(clip)
    torch.testing.assert_close(outputs(weights), theirs(source)(given).logits, atol=1e-4, rtol=1e-4)
    assert any("taken into the patch embedding" in note for note in weights.notes)
