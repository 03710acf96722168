"""Saliency that the batch brings: float32 [B, S, R, C]."""

from __future__ import annotations

import torch
from torch import Tensor

from tgm_scale.masking.saliency.inputs import SaliencyInputs


def relevance(inputs: SaliencyInputs) -> Tensor:
    """How well each patch answers to the caption: text-guided masking (arXiv 2408.00759)."""
    return inputs.maps["relevance"].float()


def motion(inputs: SaliencyInputs) -> Tensor:
    """How fast each patch moves, from the codec's motion vectors (motion-guided masking, arXiv 2308.12962)."""
    return inputs.maps["motion"].float()


def attention(inputs: SaliencyInputs) -> Tensor:
    """Logarithm of a frozen tower's class attention: with Gumbel noise of temperature 1, the tokens of highest score
    are a draw without replacement in proportion to it (Unmasked Teacher, arXiv 2303.16058)."""
    attention_BSRC = inputs.maps["attention"].float()
    return attention_BSRC.clamp(min=torch.finfo(torch.float32).tiny).log()


def parts(inputs: SaliencyInputs) -> Tensor:
    """The number of each patch's part of the picture (SemMAE, arXiv 2206.10207)."""
    return inputs.maps["parts"].float()
