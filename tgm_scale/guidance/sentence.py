"""Head of a text encoder, from its token outputs to one embedding, as specified by `sentence_folder.Sentence`.

Shapes: B captions, L tokens, D width of the encoder, E of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.guidance.sentence_folder import Dense, Sentence, dense_weights
from tgm_scale.runtime.tensors import load_tensors, weights_of


def pooled(hidden_BLD: Tensor, there_BL: Tensor, modes: tuple[str, ...]) -> Tensor:
    """Pool the tokens: the first token, or the maximum or mean over the caption's tokens; several are concatenated:
    float32 [B, len(modes) * D]. there_BL: bool, which tokens are the caption's."""
    hidden_BLD, there_BL1 = hidden_BLD.float(), there_BL[..., None]
    ways: dict[str, Callable[[], Tensor]] = {
        "cls": lambda: hidden_BLD[:, 0],
        "max": lambda: hidden_BLD.masked_fill(~there_BL1, float("-inf")).amax(1),
        "mean": lambda: (hidden_BLD * there_BL1).sum(1) / there_BL1.sum(1),
    }
    return torch.cat([ways[mode]() for mode in modes], dim=-1)


class Head(nn.Module):
    """Head on the token outputs: pooling, and the steps after it, in float32."""

    def __init__(self, sentence: Sentence, folder: Path, width: int) -> None:
        """Build the steps. width: D. Raises ValueError naming folder and file for weights that do not fit a layer."""
        super().__init__()
        self.modes = sentence.pooling
        width *= len(self.modes)
        steps: list[nn.Module] = []
        for step in sentence.after:
            if step is None:
                steps.append(_Normalize())
                continue
            if step.inputs != width:
                raise ValueError(
                    f"guidance.towers={folder}: {step.folder}/config.json: in_features={step.inputs}, and what comes "
                    f"before it has {width}: files of two models: copy them all from where the weights are from"
                )
            steps += [_linear(step, folder), getattr(nn, step.activation)()]
            width = step.outputs
        self.steps = nn.Sequential(*steps).eval().requires_grad_(False)

    def forward(self, hidden_BLD: Tensor, there_BL: Tensor) -> Tensor:
        """Return the embeddings, float32 [B, E]."""
        return self.steps(pooled(hidden_BLD, there_BL, self.modes))


class _Normalize(nn.Module):
    def forward(self, x_BE: Tensor) -> Tensor:
        return F.normalize(x_BE, dim=-1)


def _linear(step: Dense, folder: Path) -> nn.Linear:
    name = f"{step.folder}/{dense_weights(folder / step.folder)}"
    try:
        found = load_tensors(folder / name) if name.endswith(".safetensors") else weights_of(folder / name)
    except ValueError as error:
        raise ValueError(f"guidance.towers={folder}: its weights cannot be loaded: {error}") from None
    wanted = {"linear.weight": (step.outputs, step.inputs)} | ({"linear.bias": (step.outputs,)} if step.bias else {})
    given = found if isinstance(found, dict) else {}
    if wrong := sorted(key for key, shape in wanted.items() if getattr(given.get(key), "shape", None) != shape):
        raise ValueError(
            f"guidance.towers={folder}: {name}: the weights do not fill the layer: {len(wrong)} missing or of another "
            f"shape, such as {wrong[0]}"
        )
    if not all(bool(found[key].isfinite().all()) for key in wanted):
        raise ValueError(f"guidance.towers={folder}: {name}: a weight is not finite: copy it from where it is from")
    layer = nn.Linear(step.inputs, step.outputs, bias=step.bias)
    layer.load_state_dict({key.removeprefix("linear."): found[key].float() for key in wanted})
    return layer
