"""Settings in a text encoder's folder for pooling its tokens into one embedding.

An encoder without an image tower, such as a BERT, outputs one vector for each token. Their pooling is specified in
the layout of sentence-transformers (Reimers & Gurevych 2019, arXiv 1908.10084, section 3): modules.json lists the
steps, each with a folder of its own settings. Without it, as in a folder written by transformers, the embedding is
the mean over the tokens, the best choice according to section 6 there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tgm_scale.guidance.folder_files import tree_of
from tgm_scale.runtime.mistakes import nearest

# `model_type` of config.json -> transformers' class, and whether it has a head on the first token, which is unused
ENCODERS = {
    "albert": ("AlbertModel", True),
    "bert": ("BertModel", True),
    "camembert": ("CamembertModel", True),
    "deberta-v2": ("DebertaV2Model", False),
    "distilbert": ("DistilBertModel", False),
    "electra": ("ElectraModel", False),
    "modernbert": ("ModernBertModel", False),
    "mpnet": ("MPNetModel", True),
    "roberta": ("RobertaModel", True),
    "xlm-roberta": ("XLMRobertaModel", True),
}
VOCABULARY = (("tokenizer.json",),)
SETTINGS = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "special_tokens_map.json",
)
POOLING = ("cls", "max", "mean")  # the order in which several are concatenated
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")  # of torch.nn
LONGEST = 512  # tokens of a caption, for encoders that accept more

_WIDEST = 1 << 16  # dimensions of an embedding
_FLAGS = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}  # pooling_mode_..., before version 5.4
_OTHERS = ("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
_STEPS = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")  # the last does nothing in evaluation


@dataclass(frozen=True)
class Dense:
    """Linear layer with an activation of torch.nn, on the pooled embedding."""

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class Sentence:
    """Steps from tokens to one embedding. after: the steps after pooling; None is normalisation to unit length."""

    pooling: tuple[str, ...] = ("mean",)
    after: tuple[Dense | None, ...] = ()
    longest: int | None = None  # tokens
    lower: bool = False
    prompt: str = ""  # before each text

    def width(self, encoder: int) -> int:
        """Return the width of the embedding, given that of the encoder."""
        dense = [step for step in self.after if step is not None]
        return dense[-1].outputs if dense else encoder * len(self.pooling)


def read(folder: Path) -> Sentence:
    """Read the settings of a folder. Raises ValueError naming folder and file for what is unknown, or would need
    other code."""
    if not (folder / "modules.json").is_file():
        return Sentence()
    pooling: tuple[str, ...] | None = None
    after: list[Dense | None] = []
    for place, (kind, path) in enumerate(_modules(folder)):
        if (kind == "Transformer") != (place == 0) or (kind == "Pooling") != (place == 1):
            raise _mistake(folder, "modules.json", "wanted Transformer, then Pooling, then what follows it")
        if kind == "Pooling":
            pooling = _pooling(folder, path)
        elif kind == "Dense":
            after.append(_dense(folder, path))
        elif kind == "Normalize":
            after.append(None)
    if pooling is None:
        raise _mistake(folder, "modules.json", "wanted Transformer, then Pooling: there is no Pooling")
    longest, lower = _limits(folder)
    return Sentence(pooling, tuple(after), longest, lower, _prompt(folder))


def files(folder: Path) -> list[str]:
    """Return the required files of the steps, by their names in the folder. Raises ValueError as `read` does."""
    if not (folder / "modules.json").is_file():
        return []
    steps = [(kind, path) for kind, path in _modules(folder) if kind in ("Pooling", "Dense")]
    return [
        *(f"{path}/config.json" for _, path in steps),
        *(f"{path}/{dense_weights(folder / path)}" for kind, path in steps if kind == "Dense"),
    ]


def dense_weights(folder: Path) -> str:
    """Return the name of the file with a layer's weights."""
    older = "pytorch_model.bin"
    new = "model.safetensors"
    return older if (folder / older).is_file() and not (folder / new).is_file() else new


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return the kind and folder of each step."""
    found = []
    for row in tree_of(folder / "modules.json", list):
        kind, path = (str(row.get(key, "")) for key in ("type", "path")) if isinstance(row, dict) else ("", "")
        kind = kind.rsplit(".", 1)[-1]
        if kind not in _STEPS:
            known = ", ".join(_STEPS)
            raise _mistake(folder, "modules.json", f"the step {kind or row!r} is not known here; known are {known}")
        outside = PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts
        if outside or (kind == "Transformer") != (path in ("", ".")):
            what = f"{kind} in {path!r}: wanted the encoder in the folder itself and each step in one of its own: "
            raise _mistake(folder, "modules.json", f"{what}save the model again, with a newer sentence-transformers")
        found.append((kind, path))
    return found


def _pooling(folder: Path, path: str) -> tuple[str, ...]:
    name = f"{path}/config.json"
    tree = _settings(folder, name)
    given = tree.get("pooling_mode")
    if given is None:
        given = [mode for mode, flag in _FLAGS.items() if tree.get(f"pooling_mode_{flag}")]
        given += [flag for flag in _OTHERS if tree.get(f"pooling_mode_{flag}")]
    modes = tuple([given] if isinstance(given, str) else given if isinstance(given, list) else [str(given)])
    if other := [mode for mode in modes if mode not in POOLING]:
        raise _mistake(folder, name, f"pooling by {other[0]!r}: wanted one or more of {', '.join(POOLING)}")
    if tree.get("include_prompt") is False and _prompt(folder):
        raise _mistake(folder, name, "include_prompt=false leaves the prompt's tokens out, which is not done here")
    return modes or ("mean",)


def _dense(folder: Path, path: str) -> Dense:
    name = f"{path}/config.json"
    tree = _settings(folder, name)
    inputs, outputs = tree.get("in_features"), tree.get("out_features")
    if not (isinstance(inputs, int) and isinstance(outputs, int) and 0 < inputs <= _WIDEST and 0 < outputs <= _WIDEST):
        raise _mistake(folder, name, f"in_features, out_features: wanted two widths, found {inputs!r}, {outputs!r}")
    for key in ("module_input_name", "module_output_name"):
        if tree.get(key, "sentence_embedding") not in ("sentence_embedding", None):
            raise _mistake(folder, name, f"{key}={tree[key]!r}: wanted a layer on the pooled embedding")
    if tree.get("use_residual"):
        raise _mistake(folder, name, "use_residual=true is not known here")
    activation = str(tree.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise _mistake(folder, name, f"activation_function {activation!r}; {nearest(activation, list(ACTIVATIONS))}")
    return Dense(path, inputs, outputs, tree.get("bias", True) is not False, activation)


def _limits(folder: Path) -> tuple[int | None, bool]:
    name = "sentence_bert_config.json"
    tree = _settings(folder, name) if (folder / name).is_file() else {}
    longest = tree.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise _mistake(folder, name, f"max_seq_length={longest!r}: wanted a number of tokens")
    return longest, tree.get("do_lower_case") is True


def _prompt(folder: Path) -> str:
    name = "config_sentence_transformers.json"
    tree = _settings(folder, name) if (folder / name).is_file() else {}
    key, prompts = tree.get("default_prompt_name"), tree.get("prompts")
    if key is None:
        return ""
    if not isinstance(key, str) or not isinstance(prompts, dict) or not isinstance(prompts.get(key), str):
        raise _mistake(folder, name, f"default_prompt_name={key!r} is none of its prompts")
    return prompts[key]


def _settings(folder: Path, name: str) -> dict[str, Any]:
    return tree_of(folder / name, folder=folder)


def _mistake(folder: Path, name: str, what: str) -> ValueError:
    return ValueError(f"guidance.towers={folder}: {name}: {what}")
