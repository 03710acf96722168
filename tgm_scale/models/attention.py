"""Self- and cross-attention: one function over two kernels, torch's own and the flash-attn package's.

Shapes: B clips, N query tokens, V key tokens (the same in self-attention), H heads, K width of a head, D = H * K."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:  # finding the package is not enough: without its CUDA extension it is found but does not import
    from flash_attn import flash_attn_func
except (ImportError, OSError) as error:
    flash_attn_func = None
    _IMPORT_ERROR = f"the flash-attn package does not import ({error})"

Backend = Literal["auto", "sdpa", "flash"]


def flash_obstacle(device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """Return why flash-attn cannot serve here, or None where it can (its documented limits for version 2)."""
    if flash_attn_func is None:
        return _IMPORT_ERROR
    if device.type != "cuda":
        return f"flash-attn needs a CUDA device, the model is on {device.type}"
    if torch.cuda.get_device_capability(device)[0] < 8:
        return f"flash-attn needs compute capability 8.0 or newer, {torch.cuda.get_device_name(device)} is older"
    if dtype != torch.bfloat16:
        return f"flash-attn needs bf16, the model computes in {str(dtype).removeprefix('torch.')}"
    if head_width > 256 or head_width % 8:
        return f"flash-attn needs a head width of at most 256 that is a multiple of 8, not {head_width}"
    return None


def attend(q_BNHK: Tensor, k_BVHK: Tensor, v_BVHK: Tensor, backend: Backend) -> Tensor:
    """Return softmax(q k' / sqrt(K)) v for every head, [B, N, H, K].

    `auto` takes flash-attn where it can serve, else torch's scaled_dot_product_attention. Raises ValueError where
    `flash` is asked for and cannot serve, with the reason."""
    if backend != "sdpa":
        obstacle = flash_obstacle(q_BNHK.device, q_BNHK.dtype, q_BNHK.shape[-1])
        if obstacle is None:
            return flash_attn_func(q_BNHK, k_BVHK, v_BVHK)
        if backend == "flash":
            raise ValueError(f"model.attention=flash: {obstacle}. Set model.attention to auto or sdpa.")
    q, k, v = (x.transpose(1, 2) for x in (q_BNHK, k_BVHK, v_BVHK))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class _LinearGivenBias(nn.Linear):
    """A linear layer whose bias is an input: it owns only its weight (so ZeRO-3 gathers it around this forward)."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention with a bias for queries and values only.

    A bias on the keys adds the same number to all scores of a query, and softmax does not see it."""

    def __init__(self, width: int, heads: int, backend: Backend) -> None:
        super().__init__()
        self.heads = heads
        self.backend = backend
        self.qkv = _LinearGivenBias(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = self.qkv(x_BND, bias).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.proj(attend(q, k, v, self.backend).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to others of the same width, without any among themselves.

    As in `Attention`, keys have no bias. Queries, keys and values have three weights, since they see two inputs; a
    self-attention's weights have other names, so one is never taken for the other."""

    def __init__(self, width: int, heads: int, backend: Backend) -> None:
        super().__init__()
        self.heads = heads
        self.backend = backend
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, context_BVD: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)) for x in (self.q(x_BND), self.k(context_BVD), self.v(context_BVD))
        )
        return self.proj(attend(q, k, v, self.backend).flatten(2))
