"""The text towers: token ids, embeddings as transformers makes them, and the same bits whatever the batch."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from small_towers import SENTENCES, small_clip

from tgm_scale.guidance.text import TextTower
from tgm_scale.guidance.towers import load_text_tower

CAPTIONS = [*SENTENCES, "", "a", "Ein Bär läuft — 3 times! " * 20, SENTENCES[0], "naïve façade"]


@pytest.fixture(scope="module")
def real_clip(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with the real vocabulary."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(real / "clip" / name, folder / name)
    small_clip(49408).save_pretrained(folder)
    return folder


def test_the_real_vocabulary_gives_the_original_ids(real: Path, real_clip: Path) -> None:
    tower = load_text_tower(real_clip)
    rows = [json.loads(line) for line in (real / "clip" / "tokens.jsonl").read_text().splitlines()]
    assert len(rows) == 313
    ids_BL = tower.tokenize([row["caption"] for row in rows])
    assert ids_BL.shape == (313, 77)
    for ids, row in zip(ids_BL.tolist(), rows):
        length = len(row["ids"])
        assert ids[:length] == row["ids"] and set(ids[length:]) <= {49407}


def test_the_vocabulary_as_one_file_gives_the_same_ids(real_clip: Path, tmp_path: Path) -> None:
    transformers.CLIPTokenizer.from_pretrained(real_clip).save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(real_clip / name, tmp_path / name)
    assert torch.equal(load_text_tower(tmp_path).tokenize(CAPTIONS), load_text_tower(real_clip).tokenize(CAPTIONS))


def test_a_long_caption_is_cut_and_keeps_its_end_token(clip_source: Path) -> None:
    tower = load_text_tower(clip_source)
    ids = tower.tokenize(["word " * 100])[0].tolist()
    assert len(ids) == 77 and ids[-1] == 513 and ids.count(513) == 1
    began = time.process_time()
    assert tower.tokenize(["word " * 200_000])[0].tolist() == ids
    assert time.process_time() - began < 0.1, "a megabyte, of which nearly all is cut before it becomes tokens"


def test_clip_embeddings_are_those_of_transformers(clip_source: Path) -> None:
    tower = load_text_tower(clip_source)
    model = transformers.CLIPModel.from_pretrained(clip_source).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_source)
    with torch.no_grad():
        inputs = tokenizer(CAPTIONS, padding=True, truncation=True, max_length=77, return_tensors="pt")
        expected = F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)
    actual = tower.encode(CAPTIONS)
    assert tower.width == 24 and actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.norm(dim=-1), torch.ones(len(CAPTIONS)))
    assert (actual @ actual.T).fill_diagonal_(0)[0, 1:7].abs().max() < 0.999  # different captions, different vectors


def test_siglip_embeddings_are_those_of_transformers(siglip_source: Path) -> None:
    tower = load_text_tower(siglip_source)
    model = transformers.SiglipModel.from_pretrained(siglip_source).eval()
    tokenizer = transformers.SiglipTokenizer.from_pretrained(siglip_source)
    with torch.no_grad():
        ids = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
        expected = F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    assert tower.width == 48
    torch.testing.assert_close(tower.encode(CAPTIONS), expected, rtol=0, atol=1e-6)


def test_siglip_tokens_are_sentencepieces_of_the_plain_words(siglip_source: Path) -> None:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(siglip_source / "spiece.model"))
    tower = load_text_tower(siglip_source)
    ids = tower.tokenize(["The DOG walks, along the wall!"])[0].tolist()
    expected = [*pieces.encode("the dog walks along the wall"), 1]
    assert len(ids) == 16
    assert ids == [*expected, *[1] * 16][:15] + [1]  # lower case, no punctuation; ended and padded with </s>


@pytest.mark.parametrize("family", ["clip_source", "siglip_source"])
def test_a_caption_has_the_same_bits_in_any_company(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    tower = load_text_tower(folder)
    alone = {caption: load_text_tower(folder).encode([caption])[0] for caption in set(CAPTIONS)}
    cold = tower.encode(CAPTIONS)
    warm = tower.encode(CAPTIONS)
    assert torch.equal(cold, warm)
    order = random.Random(0)
    for _ in range(5):
        some = order.choices(CAPTIONS, k=order.randint(1, 12))
        for row, caption in zip(load_text_tower(folder).encode(some), some):
            assert torch.equal(row, alone[caption])
    for row, caption in zip(cold, CAPTIONS):
        assert torch.equal(row, alone[caption])


@pytest.mark.gpu
def test_on_a_gpu_too_a_caption_has_the_same_bits_in_any_company(clip_source: Path) -> None:
    many = [f"{caption} {number}" for number in range(40) for caption in SENTENCES]
    whole = load_text_tower(clip_source, "cuda", torch.bfloat16).encode(many)
    tower = load_text_tower(clip_source, "cuda", torch.bfloat16)
    for place in (0, 3, 77, 159):
        assert torch.equal(tower.encode([many[place]])[0], whole[place])


def test_the_cache_is_bounded_and_keeps_the_latest() -> None:
    passes: list[int] = []

    def embed(ids: torch.Tensor) -> torch.Tensor:
        passes.append(int(ids[0, 0]))
        return torch.cat([ids, ids**2], dim=1).float()

    def tokenize(captions: list[str]) -> torch.Tensor:
        return torch.tensor([[len(caption)] for caption in captions])

    tower = TextTower(tokenize, embed, 2, torch.device("cpu"), cache_size=2)
    tower.encode(["a", "bb", "a"])
    assert passes == [1, 2]
    tower.encode(["bb", "ccc"])  # "a" has not been used for longest
    tower.encode(["bb"])
    assert passes == [1, 2, 3]
    out = tower.encode(["a", "bb", "ccc", "dddd"])  # more than the cache holds
    assert passes == [1, 2, 3, 1, 4]
    torch.testing.assert_close(out, F.normalize(torch.tensor([[1.0, 1], [2, 4], [3, 9], [4, 16]]), dim=-1))
    assert tower.encode([]).shape == (0, 2)


def test_ids_of_captions_are_bounded_and_each_caption_is_tokenized_once() -> None:
    seen: list[str] = []

    def tokenize(captions: list[str]) -> torch.Tensor:
        seen.extend(captions)
        return torch.tensor([[len(caption)] for caption in captions])

    tower = TextTower(tokenize, lambda ids: ids.float(), 1, torch.device("cpu"), cache_size=3)
    for other in ("bb", "ccc", "dddd", "eeeee"):
        tower.encode(["a", other])
        assert len(set(tower.caption_ids(["a", other]).tolist())) == 2
    assert seen == ["a", "bb", "ccc", "dddd", "eeeee"] and len(tower._ids) == 3
    tower.encode([letter * 9 for letter in "abcdefghij"])
    assert len(tower._ids) == 3


def test_the_tower_is_frozen_and_its_output_takes_part_in_training(clip_source: Path) -> None:
    embeddings = load_text_tower(clip_source).encode(SENTENCES)
    assert not embeddings.requires_grad
    video = torch.randn(4, 24, requires_grad=True)
    (video * embeddings).sum().backward()  # would raise for an inference tensor
    assert torch.equal(video.grad, embeddings)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("family", ["clip_source", "siglip_source"])
def test_a_text_tower_is_one_graph(family: str, request: pytest.FixtureRequest) -> None:
    tower = load_text_tower(request.getfixturevalue(family))
    ids = tower.tokenize(["a red circle", "a blue square"])
    whole = torch.compile(tower._embed, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(whole(ids), tower._embed(ids))


def test_captions_of_equal_tokens_are_one(towers: Path) -> None:
    """In case and white space, and beyond the 16 tokens that this tower takes."""
    text = load_text_tower(str(towers), device=torch.device("cpu"), dtype=torch.float32)
    long = " ".join(["texture"] * 20)
    captions = ["Texture 3", "texture  3", "texture 4", f"{long} a", f"{long} b", ""]
    one = text.caption_ids(captions)
    again = load_text_tower(str(towers), device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(again.caption_ids(captions[::-1]), one.flip(0))
    assert one[0] == one[1] and one[3] == one[4] and len(set(one.tolist())) == 4
    assert torch.equal(text.encode(captions[:1]), text.encode(captions[1:2]))
    text.encode(["texture 3", "texture 5"])
    assert text.caption_ids(["texture 3"]).tolist() == one[:1].tolist()


def test_a_caption_of_a_megabyte_costs_no_time_and_gives_the_tokens_of_its_start(clip_source: Path) -> None:
    tower = load_text_tower(str(clip_source), torch.device("cpu"))
    rest = " ".join(SENTENCES) * 20_000
    began = time.perf_counter()
    long = tower.tokenize([f"a red ball {rest}"[:1_000_000]])
    assert time.perf_counter() - began < 0.2
    whole = transformers.AutoTokenizer.from_pretrained(clip_source)
    wanted = whole([f"a red ball {rest}"[:100_000]], padding="max_length", truncation=True, max_length=long.shape[1])
    assert long.tolist() == wanted.input_ids
