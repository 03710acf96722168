"""Byte-pair tokenizer with a small vocabulary, in CLIP's files and format.

Source: Sennrich et al. 2016 (byte-pair encoding); Radford et al. 2021, section 2.4 (lower case, start and end tokens).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tgm_scale.runtime.outside.json_text import json_of

END_OF_WORD = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def write_tokenizer(captions: Iterable[str], folder: Path, context: int) -> int:
    """Learn a vocabulary from captions and write vocab.json, merges.txt and tokenizer_config.json.

    Every byte, inside a word and at its end, is a token of its own, so any text can be encoded; `context` is the
    longest text in tokens. Returns the size of the vocabulary."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, end_of_word_suffix=END_OF_WORD, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json_of(tokenizer.to_str())["model"]["merges"]]
    words = [*letters, *(letter + END_OF_WORD for letter in letters), *(a + b for a, b in merges), *SPECIAL]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(words))}

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    start, end = SPECIAL
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": start,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "model_max_length": context,
        "do_lower_case": True,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return len(vocabulary)
