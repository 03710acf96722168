"""What a tower's folder may look like, and what is said where it is not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from tgm_scale.guidance.towers import check_folder, load_image_tower, load_text_tower, model_files


def message(folder: Path, parts: tuple[str, ...] = ("text", "image")) -> str:
    with pytest.raises(ValueError) as caught:
        check_folder(folder, parts)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"guidance.towers={folder}: ")
    return text


def test_whole_folders_pass(clip_source: Path, siglip_source: Path) -> None:
    assert check_folder(clip_source) == "clip"
    assert check_folder(str(siglip_source)) == "siglip"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("config.json", "missing config.json"),
        ("model.safetensors", "half a clip model: missing model.safetensors"),
        ("preprocessor_config.json", "half a clip model: missing preprocessor_config.json"),
        ("merges.txt", "half a clip model: missing tokenizer.json or merges.txt"),
    ],
)
def test_a_missing_file_is_named_beside_those_found(clip: Path, name: str, wanted: str) -> None:
    (clip / name).unlink()
    text = message(clip)
    assert wanted in text
    others = sorted(
        {"config.json", "merges.txt", "model.safetensors", "preprocessor_config.json", "vocab.json"} - {name}
    )
    assert f"found {', '.join(others)}" in text


def test_a_siglip_folder_wants_its_sentencepiece_model(siglip: Path) -> None:
    (siglip / "spiece.model").unlink()
    assert "half a siglip model: missing spiece.model" in message(siglip)
    with pytest.raises(ValueError, match=r"missing spiece.model"):
        load_text_tower(siglip)


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    assert "no such folder; wanted a CLIP or SigLIP model" in message(tmp_path / "nowhere")
    assert "missing config.json; the folder is empty" in message(tmp_path)


def test_another_model_is_refused(clip: Path) -> None:
    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert "model_type='bert'; wanted one of clip" in message(clip)
    (clip / "config.json").write_text("{")
    assert "config.json is not valid JSON" in message(clip)


def test_a_pointer_in_place_of_the_weights_is_recognised(clip: Path) -> None:
    (clip / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "model.safetensors is a git LFS pointer" in message(clip)


def test_weights_cut_short_are_an_error_of_one_line(clip: Path) -> None:
    weights = clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for load in (load_text_tower, load_image_tower):
        with pytest.raises(ValueError, match=r"guidance.towers=.*: its weights cannot be loaded: ") as caught:
            load(clip)
        assert "\n" not in str(caught.value)


def test_weights_that_do_not_fill_the_model_are_refused_and_not_drawn_at_random(clip: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(clip / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"do not fill CLIPTextModelWithProjection: 1 missing .*text_projection.weight"
    ):
        load_text_tower(clip)
    load_image_tower(clip)


def test_weights_of_another_shape_are_refused(clip: Path) -> None:
    config = json.loads((clip / "config.json").read_text())
    config["vision_config"]["patch_size"] = 16
    (clip / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"guidance.towers="):
        load_image_tower(clip)


def test_weights_in_parts_and_in_the_older_format_give_the_same_towers(clip: Path) -> None:
    expected = load_text_tower(clip).encode(["a dog"])
    assert [file.name for file in model_files(clip)][-2:] == ["preprocessor_config.json", "vocab.json"]
    model = transformers.CLIPModel.from_pretrained(clip)
    (clip / "model.safetensors").unlink()
    model.save_pretrained(clip, max_shard_size="100KB")
    parts = sorted(path.name for path in clip.glob("model-*.safetensors"))
    assert len(parts) > 1 and set(parts) < {file.name for file in model_files(clip)}
    assert torch.equal(load_text_tower(clip).encode(["a dog"]), expected)
    (clip / parts[0]).unlink()
    assert f"missing {parts[0]}" in message(clip)
    for part in clip.glob("model*safetensors*"):
        part.unlink()
    torch.save(model.state_dict(), clip / "pytorch_model.bin")
    assert torch.equal(load_text_tower(clip).encode(["a dog"]), expected)


def test_a_folder_of_one_tower(clip: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    whole = transformers.CLIPConfig.from_pretrained(clip)
    whole.text_config.projection_dim = whole.vision_config.projection_dim = whole.projection_dim
    transformers.CLIPTextModelWithProjection.from_pretrained(clip, config=whole.text_config).save_pretrained(text)
    transformers.CLIPTokenizer.from_pretrained(clip).save_pretrained(text)
    assert check_folder(text, ("text",)) == "clip_text_model"
    assert torch.equal(load_text_tower(text).encode(["a dog"]), load_text_tower(clip).encode(["a dog"]))
    assert "a clip_text_model folder has no image tower" in message(text)
    image = tmp_path / "image"
    transformers.CLIPVisionModelWithProjection.from_pretrained(clip, config=whole.vision_config).save_pretrained(image)
    (image / "preprocessor_config.json").write_text((clip / "preprocessor_config.json").read_text())
    assert load_image_tower(image).width == 24
    assert "has no text tower" in message(image)


def test_a_preprocessor_without_its_fields_is_named(clip: Path) -> None:
    (clip / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 48}}')
    with pytest.raises(ValueError, match=r"preprocessor_config.json: 'resample' is missing or unknown"):
        load_image_tower(clip)
