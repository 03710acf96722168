"""Frozen CLIP and SigLIP towers and text encoders from local folders in the Hugging Face layout. Only this module
uses their model code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgm_scale.guidance import sentence_folder
from tgm_scale.guidance.folder_files import read_json, weights_of
from tgm_scale.guidance.image import ImageTower, clip_trunk, siglip_trunk
from tgm_scale.guidance.preprocessing import Preprocessing
from tgm_scale.guidance.sentence import Head
from tgm_scale.guidance.sentence_folder import ENCODERS
from tgm_scale.guidance.text import TextTower, real_tokens
from tgm_scale.guidance.tower_folder import (
    SMALL_TOWERS,
    check_folder,
    check_vocabulary,
    has_gemma_tokenizer,
    image_settings,
    model_files,
    tower_folder,
)
from tgm_scale.runtime.compat import prepare_torchvision

__all__ = ["SMALL_TOWERS", "check_folder", "load_image_tower", "load_text_tower", "model_files", "tower_folder"]

_SPARE_ROWS = 128  # of an embedding table padded to a round number
_LETTERS = 256  # maximum length of one token: text beyond what can fill all tokens is cut before it costs time
_VOCABULARY = "its tokenizer (vocab.json, merges.txt, tokenizer.json, tokenizer_config.json)"
_POSITIONS_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")  # position ids start after the padding's
_COPY = "copy the folder's files from where they are from"
_PROBE = "a photo of two dogs near the lake"


def load_text_tower(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TextTower:
    """Load the text tower of a CLIP or SigLIP folder, or a text encoder, frozen. Raises ValueError as
    `check_folder` does."""
    kind = check_folder(folder, ("text",))
    transformers = _transformers()
    device = torch.device(device)
    if kind in ENCODERS:
        tower = _text_encoder(transformers, Path(folder), kind, device, dtype)
    else:
        tower = _joint_text_tower(transformers, Path(folder), kind, device, dtype)
    with _named(folder, "config.json and the weights"):
        embedding_1E = tower.encode([_PROBE])
    _refuse_not_finite(folder, "a caption", embedding_1E)
    return tower


def _joint_text_tower(
    transformers: Any, folder: Path, kind: str, device: torch.device, dtype: torch.dtype
) -> TextTower:
    if kind == "siglip":
        model = _load(transformers.SiglipTextModel, folder, device, dtype)
        width, output = model.config.projection_size, "pooler_output"
    else:
        model = _load(transformers.CLIPTextModelWithProjection, folder, device, dtype)
        width, output = model.config.projection_dim, "text_embeds"
    with _named(folder, _VOCABULARY):
        longest = model.config.max_position_embeddings
        whole, size = _tokenizer(transformers, folder, kind, longest)

        def tokenize(captions: list[str]) -> Tensor:
            return whole([caption[: _LETTERS * longest] for caption in captions])

        ids_BL = tokenize([_PROBE, ""])
    _refuse_other_tokenizer(folder, size, model.config.vocab_size, ids_BL)
    # no attention mask: CLIP's attention is causal and pools at the first end token, SigLIP was trained on padding
    return TextTower(tokenize, lambda ids_BL: getattr(model(input_ids=ids_BL), output), width, device)


def _text_encoder(transformers: Any, folder: Path, kind: str, device: torch.device, dtype: torch.dtype) -> TextTower:
    """Load a text-only encoder, whose tokens are pooled as its folder specifies."""
    sentence = sentence_folder.read(folder)
    name, headed = ENCODERS[kind]
    without_it = {"add_pooling_layer": False} if headed else {}
    model = _load(getattr(transformers, name), folder, device, dtype, **without_it)
    config = model.config
    head = Head(sentence, folder, config.hidden_size).to(device)
    with _named(folder, _VOCABULARY):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        positions = config.max_position_embeddings
        if kind in _POSITIONS_AFTER_PADDING:
            positions -= config.pad_token_id + 1
        longest = min(positions, sentence.longest or tokenizer.model_max_length, sentence_folder.LONGEST)
        pad = tokenizer.pad_token_id

        def tokenize(captions: list[str]) -> Tensor:
            texts = [(sentence.prompt + caption)[: _LETTERS * longest] for caption in captions]
            texts = [text.lower() for text in texts] if sentence.lower else texts
            settings = {"padding": "max_length", "padding_side": "right", "truncation": True, "max_length": longest}
            return tokenizer(texts, return_tensors="pt", **settings).input_ids

        ids_BL = tokenize([_PROBE, ""])
        if bool((ids_BL == pad).all(1).any()):
            raise ValueError("it gives an empty text no token, and an encoder's tokenizer frames each text by two")
    _refuse_short_texts(folder, longest, tokenize)
    _refuse_other_tokenizer(folder, len(tokenizer), config.vocab_size, ids_BL)

    def embed(ids_Pl: Tensor) -> Tensor:
        there_Pl = torch.arange(ids_Pl.shape[1], device=ids_Pl.device) < real_tokens(ids_Pl, pad)[:, None]
        return head(model(input_ids=ids_Pl, attention_mask=there_Pl.long()).last_hidden_state, there_Pl)

    return TextTower(tokenize, embed, sentence.width(config.hidden_size), device, pad=pad)


def _refuse_short_texts(folder: Path, longest: int, tokenize: Callable[[list[str]], Tensor]) -> None:
    """Raise ValueError where nothing of a caption is read, so that all captions are the same to the encoder."""
    ids_BL = tokenize([_PROBE, "the lake"])
    if torch.equal(ids_BL[0], ids_BL[1]):
        raise ValueError(
            f"guidance.towers={folder}: reads {longest} tokens, and none is left for a caption after the prompt: see "
            "max_seq_length of sentence_bert_config.json, model_max_length of tokenizer_config.json and "
            "default_prompt_name of config_sentence_transformers.json"
        )


def _refuse_other_tokenizer(folder: Path, size: int, rows: int, ids_BL: Tensor) -> None:
    """Raise ValueError where a tokenizer with `size` tokens, which produced these ids, does not fit a model with
    `rows` embeddings."""
    if not 0 <= rows - size < _SPARE_ROWS:
        raise ValueError(
            f"guidance.towers={folder}: a tokenizer of {size} tokens, and a text model that embeds {rows}: of two "
            "models: copy the tokenizer's files from where the weights are from"
        )
    if not 0 <= int(ids_BL.min()) <= int(ids_BL.max()) < rows:
        raise ValueError(
            f"guidance.towers={folder}: {_VOCABULARY}: a token's number is {int(ids_BL.max())}, and the text model "
            f"embeds 0 to {rows - 1}: {_COPY}"
        )


def _tokenizer(transformers: Any, folder: Path, kind: str, length: int) -> tuple[Callable[[list[str]], Tensor], int]:
    """Return a function captions -> int64 [B, length], and the number of tokens. Raises ValueError."""
    if kind == "siglip" and has_gemma_tokenizer(folder):
        return _gemma_tokenizer(folder, length)
    family = transformers.SiglipTokenizer if kind == "siglip" else transformers.CLIPTokenizer
    if (folder / "vocab.json").is_file():
        check_vocabulary(folder)
    tokenizer = family.from_pretrained(folder, local_files_only=True)

    def tokenize(captions: list[str]) -> Tensor:
        return tokenizer(
            captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids

    if kind != "siglip" and (folder / "tokenizer.json").is_file():
        reference = _tokenizer_file(folder)
        ours, theirs = tokenizer(_PROBE).input_ids, reference.encode(_PROBE).ids
        vocabulary = folder / "vocab.json"
        if ours != theirs or (
            vocabulary.is_file() and not read_json(vocabulary).items() <= reference.get_vocab().items()
        ):
            raise ValueError(
                f"guidance.towers={folder}: tokenizer.json gives other tokens than what transformers makes of the "
                f"folder ({theirs[:6]}, {ours[:6]} of '{_PROBE}'), or other numbers than vocab.json: files of two "
                "models: copy them all from where the weights are from"
            )
    return tokenize, len(tokenizer)


def _gemma_tokenizer(folder: Path, length: int) -> tuple[Callable[[list[str]], Tensor], int]:
    """Return SigLIP 2's tokenizer (arXiv 2502.14786, section 2.1): Gemma's, on lower-cased text, padded after its
    end token."""
    tokenizer = _tokenizer_file(folder)
    pad, end = tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<eos>")
    if pad is None or end is None or tokenizer.encode(_PROBE).ids[-1] != end:
        raise ValueError(
            f"guidance.towers={folder}: tokenizer.json is not SigLIP 2's: wanted <pad>, and <eos> after each "
            "text: copy it from where the weights are from"
        )
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad, pad_token="<pad>")

    def tokenize(captions: list[str]) -> Tensor:
        return torch.tensor([tokenizer.encode(caption.lower()).ids for caption in captions])

    return tokenize, tokenizer.get_vocab_size()


def _tokenizer_file(folder: Path) -> Any:
    """Return the tokenizer of tokenizer.json, without the padding and truncation that the file may specify."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the class that tokenizers raises is Exception itself
        raise ValueError(f"guidance.towers={folder}: tokenizer.json cannot be read: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_image_tower(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> ImageTower:
    """Load the image tower of a CLIP or SigLIP folder, frozen. Raises ValueError as `check_folder` does."""
    kind = check_folder(folder, ("image",))
    transformers = _transformers()
    device = torch.device(device)
    try:
        preprocessing = Preprocessing.read(image_settings(Path(folder)) or {})
    except ValueError as error:
        raise ValueError(str(error).replace("guidance.towers:", f"guidance.towers={folder}:", 1)) from None
    if kind == "siglip":
        trunk = siglip_trunk(_load(transformers.SiglipVisionModel, folder, device, dtype))
    else:
        trunk = clip_trunk(_load(transformers.CLIPVisionModelWithProjection, folder, device, dtype))
    grey_13HW = torch.full((1, 3, trunk.image_size, trunk.image_size), 128, dtype=torch.uint8)
    with _named(folder, "config.json and the weights"):
        _refuse_not_finite(
            folder, "a grey picture", ImageTower(trunk, preprocessing, device).patch_tokens(grey_13HW, "raw")
        )
    return ImageTower(trunk, preprocessing, device, compiled)


@contextmanager
def _named(folder: str | Path, files: str) -> Iterator[None]:
    """Convert errors that transformers and tokenizers raise about a folder's files to one line that names them."""
    try:
        yield
    except Exception as error:  # transformers and tokenizers raise many classes
        reason = " ".join(str(error).split())[:200]
        lasting = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or getattr(error, "errno", None) is not None
        if lasting or reason.startswith("guidance.towers="):
            raise
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"guidance.towers={folder}: {files}: {name}{reason}: {_COPY}") from error


def _refuse_not_finite(folder: str | Path, what: str, output: Tensor) -> None:
    if not output.isfinite().all():
        raise ValueError(
            f"guidance.towers={folder}: of {what} it makes numbers that are not finite (in {output.dtype}): {_COPY}"
        )


def _transformers() -> Any:
    """Return transformers, imported late (4 s), without its progress bars and its notes on weights it was not asked
    for."""
    prepare_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _load(model_class: Any, folder: str | Path, device: torch.device, dtype: torch.dtype, **arguments: Any) -> Any:
    """Load a frozen model with all weights from the folder: transformers would initialise missing ones at random."""
    config = _tower_config(model_class, folder)
    try:
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa" if model_class._supports_sdpa else "eager",  # MPNet and DeBERTa have no other
            local_files_only=True,
            use_safetensors=".safetensors" in weights_of(Path(folder)),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below with a message
            **arguments,
        )
    except Exception as error:  # transformers and safetensors raise many errors for a bad file
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"guidance.towers={folder}: its weights cannot be loaded: {reason}") from error
    wrong = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"guidance.towers={folder}: the weights do not fill {model_class.__name__}: {len(wrong)} missing or of "
            f"another shape, such as {wrong[0]}"
        )
    model = model.eval().requires_grad_(False).to(device)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.isfinite().all():
            raise ValueError(f"guidance.towers={folder}: {name} is not finite as {tensor.dtype}: {_COPY}")
        # copied from the file's mapping: a product's last bit depends on the memory alignment of its operands
        tensor.data = tensor.data.clone()
    return model


def _tower_config(model_class: Any, folder: str | Path) -> Any:
    """Return the configuration of one tower. In a whole CLIP the joint space's width is the model's: that of its
    parts, which applies to a tower loaded alone, may have been left at the default."""
    with _named(folder, "config.json"):
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
        whole = read_json(Path(folder) / "config.json")
        if whole["model_type"] == "clip" and "projection_dim" in whole:
            config.projection_dim = whole["projection_dim"]
    return config
