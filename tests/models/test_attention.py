"""Attention against a plain softmax, and the choice of kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tgm_scale.models.attention import Attention, attend, flash_obstacle


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(K)) v, head by head, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    scores = torch.einsum("bihk,bjhk->bhij", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bjhk->bihk", scores.softmax(-1), v)


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("context", [7, 4, 11])  # tokens that are looked at: the same, or others
def test_sdpa_is_plain_attention(backend: str, dtype: torch.dtype, tolerance: float, context: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, tokens, 3, 8).to(dtype) for tokens in (7, context, context))
    out = attend(q, k, v, backend)
    assert out.shape == q.shape and out.dtype == dtype
    torch.testing.assert_close(out.double(), plain(q, k, v), rtol=tolerance, atol=tolerance)


def test_flash_where_it_cannot_serve_names_reason_and_remedy() -> None:
    q = torch.randn(1, 4, 2, 8)
    with pytest.raises(ValueError, match=r"model.attention=flash: .*flash-attn.*auto or sdpa"):
        attend(q, q, q, "flash")


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or flash_obstacle(torch.device("cuda"), torch.bfloat16, 64) is not None,
    reason="needs a GPU and the flash-attn package",
)
@pytest.mark.parametrize("context", [33, 20, 50])
def test_flash_is_plain_attention_on_a_gpu(context: int) -> None:
    q, k, v = (torch.randn(2, tokens, 3, 64, device="cuda").bfloat16() for tokens in (33, context, context))
    torch.testing.assert_close(attend(q, k, v, "flash").double(), plain(q, k, v), rtol=2e-2, atol=2e-2)
    with pytest.raises(ValueError, match="needs bf16"):
        attend(q.float(), k.float(), v.float(), "flash")


def test_queries_and_values_have_a_bias_and_a_key_bias_would_change_nothing() -> None:
    torch.manual_seed(0)
    layer = Attention(12, 3, "sdpa").double()
    for name in ("q_bias", "v_bias"):
        torch.nn.init.normal_(getattr(layer, name))
    x = torch.randn(2, 5, 12).double()
    for key_bias in (torch.zeros(12), torch.randn(12)):
        bias = torch.cat([layer.q_bias, key_bias, layer.v_bias])
        q, k, v = (y.unflatten(-1, (3, 4)) for y in (x @ layer.qkv.weight.T + bias).chunk(3, dim=-1))
        torch.testing.assert_close(layer(x), layer.proj(plain(q, k, v).flatten(2)))
