"""AdaMAE's adaptive sampler, which learns the tokens that a clip's encoder sees (Bandara et al. 2023, arXiv
2211.09120).

Shapes: B clips, N tokens of the grid, D width of the encoder; S slots, R rows, C columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tgm_scale.models.patches import Positions
from tgm_scale.models.pretraining import MaskedVideoAutoencoder, Projection, block_macs
from tgm_scale.models.vit import Block, ModelSize, initialise, run_blocks


class Sampler(nn.Module):
    """Learned sampler: embeddings of all patches of a clip -> a logit of each, by one block of attention over them and
    a linear layer (section 3.2). It has the size and options of the model that it serves.

    It takes the model's own embeddings without a gradient, so that its loss trains nothing but itself. The linear
    layer begins at 0: the first masks are drawn evenly."""

    def __init__(self, model: MaskedVideoAutoencoder, seed: int = 0) -> None:
        super().__init__()
        size, options = model.size, model.options
        self.grid, self.activation_checkpointing = model.grid, options.activation_checkpointing
        self.positions = Positions(model.grid, size.width)
        self.blocks = nn.ModuleList([Block(size.width, size.heads, size.mlp, options.attention)])
        self.head = Projection(size.width, 1)  # a bias would be the same for all tokens
        initialise(self.blocks, seed)
        with torch.no_grad():
            self.head.weight.zero_()

    def forward(self, embedded_BND: Tensor) -> Tensor:
        """Return logits, float32 [B, S, R, C]: the higher, the more likely a token is seen."""
        x_BND = self.positions(embedded_BND, None, dtype=embedded_BND.dtype)
        logit_BN = self.head(run_blocks(self.blocks, x_BND, self.activation_checkpointing))[..., 0]
        return logit_BN.view(-1, self.grid.slots, self.grid.rows, self.grid.columns)


def sampler_macs(size: ModelSize, tokens: int) -> int:
    """Return the multiply-accumulates of one clip's forward pass, as `macs_per_clip` counts: the embedding of all
    patches (without a gradient), and the block over them."""
    return tokens * size.patch_values * size.width + block_macs(tokens, size.width, size.mlp)


def sampler_parameters(size: ModelSize) -> int:
    """Return the number of parameters, including the biases and norms of the block."""
    return 4 * size.width**2 + 2 * size.width * size.mlp + 9 * size.width + size.mlp
