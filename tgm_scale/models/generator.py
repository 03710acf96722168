"""AutoMAE's mask generator, which learns the tokens to hide from a frozen tower's attention (Chen et al. 2023, arXiv
2303.06583, section 3).

Shapes: B clips, A heads of the tower, K channels of the hidden layer, S slots, R rows, C columns of the token grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.models.vit import initialise
from tgm_scale.runtime.precision import without_autocast

SIDE = 3  # of both kernels, in tokens


class _Convolution(nn.Conv2d):
    """Convolution of SIDE x SIDE with zeros about the map, in float32 regardless of its weight's dtype and autocast.
    It has no bias, which the last layer's softmax does not see and centred maps do not need."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, SIDE, padding=SIDE // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            return F.conv2d(x.float(), self.weight.float(), padding=self.padding)


class Generator(nn.Module):
    """Mask generator: attention of each head of a frozen tower to a clip's tokens -> a logit of each token, slot by
    slot: the logarithm of the mean attention, plus two convolutions over those of the heads.

    The second convolution begins at 0: the first masks are drawn in proportion to the attention."""

    def __init__(self, heads: int, seed: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.hidden = _Convolution(heads, _hidden(heads))
        self.head = _Convolution(_hidden(heads), 1)
        initialise(self, seed)
        with torch.no_grad():
            self.head.weight.zero_()

    def forward(self, heads_BASRC: Tensor) -> Tensor:
        """Return logits, float32 [B, S, R, C]: the higher, the more likely a token is hidden."""
        heads_NARC = heads_BASRC.float().transpose(1, 2).flatten(0, 1)
        prior_NRC = _log(heads_NARC.mean(dim=1))
        log_NARC = _log(heads_NARC)
        x_NKRC = F.gelu(self.hidden(log_NARC - log_NARC.mean(dim=(2, 3), keepdim=True)))
        logit_NRC = prior_NRC + self.head(x_NKRC)[:, 0]
        return logit_NRC.unflatten(0, (len(heads_BASRC), -1))


def _log(share: Tensor) -> Tensor:
    return share.clamp(min=torch.finfo(torch.float32).tiny).log()


def _hidden(heads: int) -> int:
    return max(heads // 2, 1)


def generator_macs(heads: int, tokens: int) -> int:
    """Return the multiply-accumulates of one clip's forward pass."""
    return tokens * generator_parameters(heads)


def generator_parameters(heads: int) -> int:
    return SIDE**2 * (heads + 1) * _hidden(heads)


def generator_values(heads: int, tokens: int) -> int:
    """Return the float32 values kept of one clip for the backward pass: the maps of the heads, and the hidden layer
    before and after its GELU."""
    return tokens * (heads + 2 * _hidden(heads))
