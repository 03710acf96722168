"""What a tower's folder may look like, and what is said where it is not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from tgm_scale.guidance.preprocessing import Preprocessing
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
    (clip / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "model_type='gpt2'; wanted one of clip" in message(clip)
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


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def test_what_transformers_5_saves_gives_the_same_towers(clip: Path, frames: Callable[..., torch.Tensor]) -> None:
    """One processor_config.json in place of preprocessor_config.json, one tokenizer.json in place of two files."""
    clips = frames(2, 3, 60, 50)
    text, image = load_text_tower(clip).encode(["a dog"]), load_image_tower(clip).embed(clips)
    settings = json.loads((clip / "preprocessor_config.json").read_text())
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip)
    for name in ("preprocessor_config.json", "vocab.json", "merges.txt"):
        (clip / name).unlink()
    tokenizer.save_pretrained(clip)
    nested = {"processor_class": "CLIPProcessor", "image_processor": settings}
    (clip / "processor_config.json").write_text(json.dumps(nested))
    assert check_folder(clip) == "clip" and "processor_config.json" in {file.name for file in model_files(clip)}
    assert torch.equal(load_text_tower(clip).encode(["a dog"]), text)
    assert torch.equal(load_image_tower(clip).embed(clips), image)
    (clip / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert "missing preprocessor_config.json (or a processor_config.json with" in message(clip)


def test_pickled_weights_in_parts(clip: Path) -> None:
    expected = load_text_tower(clip).encode(["a dog"])
    state = transformers.CLIPModel.from_pretrained(clip).state_dict()
    (clip / "model.safetensors").unlink()
    parts = {
        "pytorch_model-00001-of-00002.bin": list(state)[::2],
        "pytorch_model-00002-of-00002.bin": list(state)[1::2],
    }
    for file, names in parts.items():
        torch.save({name: state[name] for name in names}, clip / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (clip / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert torch.equal(load_text_tower(clip).encode(["a dog"]), expected)
    assert set(parts) < {file.name for file in model_files(clip)}
    (clip / next(iter(parts))).unlink()
    assert f"missing {next(iter(parts))}" in message(clip)


def test_a_pointer_that_nothing_reads_is_no_fault(clip: Path) -> None:
    expected = load_text_tower(clip).encode(["a dog"])
    state = transformers.CLIPModel.from_pretrained(clip).state_dict()
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.bin", "other.safetensors"):
        pointer(clip / name)
    assert torch.equal(load_text_tower(clip).encode(["a dog"]), expected)
    torch.save(state, clip / "pytorch_model.bin")
    pointer(clip / "model.safetensors")
    assert torch.equal(load_text_tower(clip).encode(["a dog"]), expected)
    pointer(clip / "vocab.json")
    assert "vocab.json is a git LFS pointer" in message(clip)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, lambda x: (x / 255 - 0.5) / 0.25),
        ({"do_normalize": False}, lambda x: x / 255),
        ({"do_normalize": False, "do_rescale": False}, lambda x: x),
        ({"rescale_factor": 1 / 127.5}, lambda x: (x / 127.5 - 0.5) / 0.25),
        ({"crop_size": {"height": 32, "width": 32}}, lambda x: ((x / 255 - 0.5) / 0.25)[..., 8:40, 8:40]),
        ({"crop_size": 32, "do_center_crop": False}, lambda x: (x / 255 - 0.5) / 0.25),
        ({"size": {"height": 48, "width": 48}, "crop_size": 32}, lambda x: ((x / 255 - 0.5) / 0.25)[..., 8:40, 8:40]),
    ],
)
def test_each_field_of_the_preprocessing_counts(
    changes: dict, expected: Callable[[torch.Tensor], torch.Tensor], frames: Callable[..., torch.Tensor]
) -> None:
    base = {
        "size": {"shortest_edge": 48},
        "do_center_crop": True,
        "crop_size": 48,
        "resample": 3,
        "image_mean": [0.5] * 3,
    }
    settings = base | {"image_std": [0.25] * 3} | changes
    picture = frames(1, 3, 48, 48)
    ours = Preprocessing.read(settings).pictures(picture)
    torch.testing.assert_close(ours, expected(picture.float()))
    theirs = transformers.CLIPImageProcessorPil(**settings)(
        images=picture[0].numpy(), return_tensors="pt"
    ).pixel_values
    torch.testing.assert_close(ours, theirs.float())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"do_resize": False}, "do_resize=false"),
        ({"size": {"height": 48, "width": 64}}, "wanted squares"),
        ({"size": {"shortest_edge": 48, "longest_edge": 64}}, "wanted squares"),
        ({"crop_size": 64}, "a crop that fits"),
        ({"image_std": [0, 1, 1]}, "deviations above 0"),
    ],
)
def test_preprocessing_that_cannot_be_followed_is_refused(clip: Path, changes: dict, wanted: str) -> None:
    settings = json.loads((clip / "preprocessor_config.json").read_text()) | changes
    (clip / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"preprocessor_config.json: .*{wanted}"):
        load_image_tower(clip)


def gemma(folder: Path, words: int, end: bool = True) -> None:
    """A tokenizer laid out as SigLIP 2's: Gemma's special tokens, <eos> after each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "dog", "a", "red"]
    names += [f"w{number}" for number in range(words - len(names))]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')


def test_siglip_2_reads_gemmas_tokenizer_in_lower_case(siglip: Path) -> None:
    (siglip / "spiece.model").unlink()
    gemma(siglip, 44)
    tower = load_text_tower(siglip)
    ids = tower.tokenize(["a RED dog", "dog " * 40])
    assert ids[0].tolist() == [5, 6, 4, 1] + [0] * 12 and ids[1].tolist() == [4] * 15 + [1]
    model = transformers.SiglipTextModel.from_pretrained(siglip).eval()
    expected = torch.nn.functional.normalize(model(input_ids=ids[:1]).pooler_output, dim=-1)
    torch.testing.assert_close(tower.encode(["a red dog"]), expected)
    gemma(siglip, 44, end=False)
    with pytest.raises(ValueError, match="not SigLIP 2's: wanted <pad>, and <eos>"):
        load_text_tower(siglip)
    (siglip / "tokenizer.json").unlink()
    assert "missing tokenizer.json" in message(siglip)


def test_a_tokenizer_of_another_model_is_refused(siglip: Path, clip: Path) -> None:
    gemma(siglip, 300)
    with pytest.raises(ValueError, match="a tokenizer of 300 tokens, and a text model that embeds 44"):
        load_text_tower(siglip)
    (siglip / "tokenizer_config.json").unlink()
    load_text_tower(siglip)  # SigLIP 1's own, with spiece.model
    config = json.loads((siglip / "config.json").read_text())
    (siglip / "config.json").write_text(json.dumps(config | {"model_type": "siglip2"}))
    assert "a SigLIP 2 of variable resolution" in message(siglip)

    transformers.CLIPTokenizer.from_pretrained(clip).save_pretrained(clip)
    load_text_tower(clip)
    tokens = json.loads((clip / "vocab.json").read_text())
    tokens["a</w>"], tokens["b</w>"] = tokens["b</w>"], tokens["a</w>"]
    (clip / "vocab.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match=r"tokenizer.json gives other tokens than"):
        load_text_tower(clip)
