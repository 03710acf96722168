"""Folders of text encoders that are half, damaged or of another layout: refused with folder and file named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_encoders import write_dense, write_encoder, write_modules

from tgm_scale.guidance.towers import check_folder, load_image_tower, load_text_tower

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_encoder(folder, "bert")
    torch.manual_seed(0)
    write_modules(folder, {"pooling_mode": "mean"}, torch.nn.Linear(32, 20), "Normalize")
    load_text_tower(folder)
    return folder


@pytest.fixture
def bert(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "bert"))


def refusal(folder: Path, load: Callable[[Path], object] = load_text_tower) -> str:
    with pytest.raises(ValueError, match=r"guidance\.towers=") as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith(f"guidance.towers={folder}: ") and "\n" not in text and len(text) < 600
    return text


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "tokenizer.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    ],
)
def test_what_is_missing_or_a_pointer_is_named(bert: Path, name: str) -> None:
    """Before anything is loaded."""
    (bert / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    check = lambda folder: check_folder(folder, ("text",))  # noqa: E731
    assert f"{name} is a git LFS pointer" in refusal(bert, check)
    (bert / name).unlink()
    assert f"half a bert model: missing {name}" in refusal(bert, check)


def setting(file: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        place = folder / file
        tree = json.loads(place.read_text()) if place.is_file() else {}
        place.write_text(json.dumps(tree | changes))

    return spoil


def step(row: int, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        rows = json.loads((folder / "modules.json").read_text())
        rows[row] |= changes
        (folder / "modules.json").write_text(json.dumps(rows))

    return spoil


def only(*rows: int) -> Spoil:
    def spoil(folder: Path) -> None:
        given = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps([given[row] for row in rows]))

    return spoil


def wider(folder: Path) -> None:
    write_dense(folder / "2_Dense", torch.nn.Linear(48, 20))


def weights(change: Callable[[dict[str, torch.Tensor]], object], file: str = "2_Dense/model.safetensors") -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, {"format": "pt"})

    return spoil


def pickled(folder: Path) -> None:
    (folder / "2_Dense/model.safetensors").unlink()
    torch.save({"linear.weight": Path("/")}, folder / "2_Dense/pytorch_model.bin")


def frameless(folder: Path) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tree | {"post_processor": None}))
    setting("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")(folder)


DEEP = "encoder.layer.1.output.dense.weight"
SETTINGS, PROMPTS, POOLING = "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"
CASES: dict[str, tuple[Spoil, str]] = {
    "two tokens": (setting(SETTINGS, max_seq_length=2), "reads 2 tokens, and none is left for a caption after"),
    "a prompt alone": (
        setting(PROMPTS, default_prompt_name="q", prompts={"q": "a red ball moves " * 20}),
        "reads 40 tokens, and none is left for a caption after the prompt: see max_seq_length of",
    ),
    "a list of names": (
        setting(PROMPTS, default_prompt_name=["q"], prompts={"q": ""}),
        f"{PROMPTS}: default_prompt_name=['q'] is none of its prompts",
    ),
    "modules an object": (lambda f: (f / "modules.json").write_text("{}"), "modules.json: wanted a JSON list"),
    "modules cut": (lambda f: (f / "modules.json").write_text("[{"), "modules.json is not valid JSON"),
    "another step": (step(2, type="sentence_transformers.models.LSTM"), "modules.json: the step 'LSTM' is not known"),
    "code of its own": (step(0, type="custom_st.Model"), "modules.json: the step 'Model' is not known here"),
    "a row of text": (lambda f: (f / "modules.json").write_text('["x"]'), "modules.json: the step 'x' is not known"),
    "no pooling": (only(0), "modules.json: wanted Transformer, then Pooling: there is no Pooling"),
    "pooling last": (only(0, 2, 1), "modules.json: wanted Transformer, then Pooling, then what follows it"),
    "no encoder": (only(1), "modules.json: wanted Transformer, then Pooling"),
    "the encoder elsewhere": (step(0, path="0_Transformer"), "Transformer in '0_Transformer': wanted the encoder in"),
    "outside the folder": (step(1, path="../1_Pooling"), "Pooling in '../1_Pooling': wanted"),
    "another pooling": (setting(POOLING, pooling_mode="lasttoken"), f"{POOLING}: pooling by 'lasttoken': wanted"),
    "an older flag": (
        lambda f: (f / POOLING).write_text('{"pooling_mode_weightedmean_tokens": true}'),
        f"{POOLING}: pooling by 'weightedmean_tokens': wanted one or more of cls, max, mean",
    ),
    "pooling by a number": (setting(POOLING, pooling_mode=3), f"{POOLING}: pooling by '3': wanted"),
    "no prompt of that name": (
        setting(PROMPTS, default_prompt_name="q", prompts={}),
        f"{PROMPTS}: default_prompt_name='q' is none of its prompts",
    ),
    "a length of text": (setting(SETTINGS, max_seq_length="9"), f"{SETTINGS}: max_seq_length='9': wanted a number"),
    "a length of 0": (setting(SETTINGS, max_seq_length=0), f"{SETTINGS}: max_seq_length=0: wanted a number"),
    "a width of text": (setting("2_Dense/config.json", in_features="32"), "2_Dense/config.json: in_features, out_fea"),
    "another activation": (
        setting("2_Dense/config.json", activation_function="custom.Swish"),
        "2_Dense/config.json: activation_function 'Swish'; known: Identity, Tanh",
    ),
    "a residual": (setting("2_Dense/config.json", use_residual=True), "2_Dense/config.json: use_residual=true"),
    "a layer on tokens": (
        setting("2_Dense/config.json", module_input_name="token_embeddings"),
        "2_Dense/config.json: module_input_name='token_embeddings': wanted a layer on the pooled embedding",
    ),
    "a layer of another model": (wider, "2_Dense/config.json: in_features=48, and what comes before it has 32"),
    "a layer without its bias": (
        weights(lambda w: w.pop("linear.bias")),
        "do not fill the layer: 1 missing or of another shape, such as linear.bias",
    ),
    "a layer that is not finite": (
        weights(lambda w: w["linear.weight"].view(-1)[3].fill_(float("nan"))),
        "2_Dense/model.safetensors: a weight is not finite",
    ),
    "a pickled layer": (pickled, "its weights cannot be loaded: "),
    "the encoder cut": (
        weights(lambda w: w.pop(DEEP), "model.safetensors"),
        f"the weights do not fill BertModel: 1 missing or of another shape, such as {DEEP}",
    ),
    "the encoder not finite": (
        weights(lambda w: w[DEEP].view(-1)[3].fill_(float("inf")), "model.safetensors"),
        f"{DEEP} is not finite",
    ),
    "a tokenizer cut": (lambda f: (f / "tokenizer.json").write_text('{"version"'), "tokenizer"),
    "a tokenizer without frame": (frameless, "it gives an empty text no token"),
    "other sizes than the weights": (setting("config.json", vocab_size=7), "do not fill BertModel: 1 missing or of"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_folder_is_refused_by_name(bert: Path, case: str) -> None:
    spoil, wanted = CASES[case]
    spoil(bert)
    assert wanted in refusal(bert)


def test_a_prompt_that_pooling_leaves_out_is_refused(bert: Path) -> None:
    setting(PROMPTS, default_prompt_name="q", prompts={"q": "query: "})(bert)
    load_text_tower(bert)
    setting(POOLING, include_prompt=False)(bert)
    assert "include_prompt=false" in refusal(bert)


def test_a_tokenizer_of_another_size_is_refused(bert: Path, tmp_path: Path) -> None:
    write_encoder(tmp_path / "roberta", "roberta")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tmp_path / "roberta" / name, bert / name)
    assert "of two models: copy the tokenizer's files" in refusal(bert)


def test_another_kind_of_model_and_a_decoder_are_refused(bert: Path) -> None:
    setting("config.json", model_type="gpt2")(bert)
    text = refusal(bert)
    assert "model_type='gpt2'; wanted one of clip" in text and "bert" in text and "mpnet" in text


def test_there_is_no_image_tower(bert: Path) -> None:
    assert "a bert folder has no image tower; wanted a CLIP or SigLIP" in refusal(bert, load_image_tower)
