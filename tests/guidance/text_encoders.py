"""Small text encoders with random weights, saved as their users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from small_towers import SENTENCES, randomise
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

transformers.logging.disable_progress_bar()

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
POSITIONS = 40
DISTILBERT = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
OTHERS: dict[str, dict[str, Any]] = {  # what a kind has beside `SHAPE`
    "albert": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "electra": {"embedding_size": 16},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
}
POSITIONS_AFTER_PADDING = {"roberta": 1, "mpnet": 1, "xlm-roberta": 1, "camembert": 1}  # kind -> number of the padding


def write_encoder(folder: Path, kind: str, **changes: Any) -> None:
    """A model of transformers' own class, and its tokenizer."""
    pad = POSITIONS_AFTER_PADDING.get(kind, 0)
    tokenizer = _tokenizer(kind, pad)
    tokenizer.save_pretrained(folder)
    positions = POSITIONS + (pad + 1 if kind in POSITIONS_AFTER_PADDING else 0)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        pad_token_id=pad,
        **{**(DISTILBERT if kind == "distilbert" else SHAPE), **OTHERS.get(kind, {}), **changes},
    )
    model = transformers.AutoModel.from_config(config).eval()
    randomise(model)
    model.save_pretrained(folder)


def _tokenizer(kind: str, pad: int) -> Any:
    """Of the kind's own class for BERT, RoBERTa and MPNet; of others as tokenizer.json has it."""
    if kind == "roberta":
        plain = Tokenizer(models.BPE())
        plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        plain.train_from_iterator(SENTENCES, trainer)
        model = json.loads(plain.to_str())["model"]
        return transformers.RobertaTokenizer(
            vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=POSITIONS
        )
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "mpnet":
        names = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    elif pad:
        names = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    plain = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    plain.normalizer, plain.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    plain.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=120, special_tokens=names))
    if kind == "bert":
        return transformers.BertTokenizer(vocab=plain.get_vocab(), model_max_length=POSITIONS)
    if kind == "mpnet":
        return transformers.MPNetTokenizer(vocab=plain.get_vocab(), model_max_length=POSITIONS)
    first, last = ((name, plain.token_to_id(name)) for name in ("[CLS]", "[SEP]"))
    plain.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[first, last])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", model_max_length=POSITIONS
    )


def write_modules(folder: Path, pooling: dict[str, Any], *after: str | torch.nn.Linear) -> None:
    """modules.json and what it names: `after` the pooling, Normalize by name or a layer of Dense with Tanh."""
    kinds = ["Transformer", "Pooling", *("Dense" if isinstance(step, torch.nn.Linear) else step for step in after)]
    rows = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    for place, step in enumerate(after, start=2):
        if isinstance(step, torch.nn.Linear):
            write_dense(folder / f"{place}_Dense", step)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))


def write_dense(folder: Path, layer: torch.nn.Linear) -> None:
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    sizes = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    settings = {**sizes, "activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "config.json").write_text(json.dumps(settings))
    weights = {f"linear.{name}": value.detach().clone() for name, value in layer.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
