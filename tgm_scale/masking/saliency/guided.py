"""Saliency that the batch brings: float32 [B, S, R, C]."""

from __future__ import annotations

import torch
from torch import Tensor

from tgm_scale.masking.saliency.request import Request


def relevance(request: Request) -> Tensor:
    """How well each patch answers to the caption: text-guided masking (arXiv 2408.00759)."""
    return request.maps["relevance"].float()


def motion(request: Request) -> Tensor:
    """How fast each patch moves, from the codec's motion vectors (motion-guided masking, arXiv 2308.12962)."""
    return request.maps["motion"].float()


def attention(request: Request) -> Tensor:
    """Logarithm of a frozen tower's class attention: with Gumbel noise of temperature 1, the tokens of highest score
    are a draw without replacement in proportion to it (Unmasked Teacher, arXiv 2303.16058)."""
    attention_BSRC = request.maps["attention"].float()
    return attention_BSRC.clamp(min=torch.finfo(torch.float32).tiny).log()


def parts(request: Request) -> Tensor:
    """The number of each patch's part of the picture (SemMAE, arXiv 2206.10207)."""
    return request.maps["parts"].float()
