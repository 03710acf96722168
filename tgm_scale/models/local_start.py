"""Initialisation for short runs: every attention head attends to one neighbour of its token from the first step.

With the usual initialisation attention is flat at the start, and a masked autoencoder first has to learn, from the
table of positions, which tokens are near. A small model on a CPU does not within minutes
(docs/lab-notes/demo_recipe.md). Heads that start as shifts, as in structured initialisation (Zheng et al. 2024, arXiv
2404.01139), save it that. Values and projections lean to a rotation and its inverse (mimetic initialisation, Trockman
& Kolter 2023, arXiv 2305.09828), and the decoder's head undoes the embedding: what a token has copied from its
neighbours comes out as pixels.

Shapes: D width, H heads, K = D / H width of a head, P values of a patch."""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.models.attention import Attention, CrossAttention
from tgm_scale.models.patches import channel_last
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import Block, CrossBlock

# measured on the demo's corpus, 300 steps of 16 clips: loss 0.78 of its start, 0.99 with the usual initialisation;
# 800 steps of 8 clips, two seeds: 0.72 and 0.72; without the rotations 0.73 and 0.82, without both 0.83 and 0.84
_NOISE = 0.5  # share of the usual weights of queries and keys that stays
_GAIN = 1.5  # factor of the shift
_CARRY = 0.3  # share of values and projections that is a rotation and its inverse
_CONTENT = 0.5  # factor of the usual weights of embeddings, so that positions outweigh content in queries and keys
_HEAD = 0.1  # factor of the spread of the head's usual weights: predictions start near the targets' mean, 0
_OF_PIXELS, _OF_FRAMES, _OF_CHANNELS = 6.0, 5.0, 5.0  # places over which values of a patch correlate
_PIXEL_NOISE = 0.01  # share of the mean variance of what is seen


@torch.no_grad()
def start_locally(model: MaskedVideoAutoencoder) -> None:
    """Change freshly initialised weights in place: head i of the encoder, and of the decoder, attends to neighbour i,
    and passes on what it reads there."""
    for blocks in (model.encoder.blocks, model.decoder.blocks):
        turn = 0
        for block in blocks:
            assert isinstance(block, Block | CrossBlock)
            turn = _shift_heads(block.attn, model.grid, turn)
            _carry_values(block.attn)
    model.encoder.patch_embed.proj.weight.mul_(_CONTENT)
    model.encoder_to_decoder.weight.mul_(_CONTENT)
    _invert_embedding(model)


def _invert_embedding(model: MaskedVideoAutoencoder) -> None:
    """Set the decoder's head to the best linear guess (Wiener's) of a smooth patch's pixels from what embedding and
    `encoder_to_decoder` keep of it, with _HEAD times the spread of the head's usual weights: predictions are in units
    of the patch's own deviation, so only the direction matters."""
    head, projection = model.decoder.head.weight, model.encoder.patch_embed.proj.weight
    sides = zip(projection.shape[1:], (_OF_CHANNELS, _OF_FRAMES, _OF_PIXELS, _OF_PIXELS), strict=True)
    covariance_PP = reduce(torch.kron, [_correlation(side, length) for side, length in sides])
    embed_DP = model.encoder_to_decoder.weight @ projection.flatten(1)
    both_DP = embed_DP @ covariance_PP
    seen_DD = both_DP @ embed_DP.T
    seen_DD += _PIXEL_NOISE * seen_DD.diagonal().mean() * torch.eye(len(seen_DD))
    guess_DP = channel_last(torch.linalg.solve(seen_DD, both_DP))  # the order of predictions
    head.copy_(guess_DP.T * (_HEAD * head.std() / guess_DP.std()))


def _correlation(count: int, length: float) -> Tensor:
    """Return the correlation of values `n` places apart, taken as exp(-n / length): float32 [count, count]."""
    place = torch.arange(count)
    return torch.exp(-(place[:, None] - place).abs() / length)


def neighbours(grid: Grid) -> tuple[int, ...]:
    """Return the nearest tokens' offsets in the flattened clip: below, above, right, left, next and previous slot."""
    row, slot = grid.columns, grid.rows * grid.columns
    return row, -row, 1, -1, slot, -slot


def _weights(attention: Attention | CrossAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of queries, keys and values, [D, D] each, to be changed in place."""
    if isinstance(attention, CrossAttention):
        return attention.q.weight, attention.k.weight, attention.v.weight
    queries, keys, values = attention.qkv.weight.chunk(3)
    return queries, keys, values


def _shift_heads(attention: Attention | CrossAttention, grid: Grid, turn: int) -> int:
    """Give the heads their neighbours in turn. Returns the turn of the next block's first head."""
    queries, keys, _ = _weights(attention)
    width, offsets = len(queries), neighbours(grid)
    for weight in (queries, keys):
        weight.mul_(_NOISE)
    for rows in torch.arange(width).chunk(attention.heads):
        query_KD, key_KD = _shift(width, len(rows), offsets[turn % len(offsets)])
        queries[rows] += _GAIN * query_KD
        keys[rows] += _GAIN * key_KD
        turn += 1
    return turn


def _carry_values(attention: Attention | CrossAttention) -> None:
    """Let values and projections lean to an orthogonal matrix, made from the random values, and its inverse."""
    _, _, values = _weights(attention)
    rotation_DD, _ = torch.linalg.qr(values)
    values.lerp_(rotation_DD, _CARRY)
    attention.proj.weight.lerp_(rotation_DD.T, _CARRY)


def _shift(width: int, head_width: int, offset: int) -> tuple[Tensor, Tensor]:
    """Return queries and keys, float32 [K, D] each, whose product is largest `offset` tokens away.

    A key is some (sine, cosine) pairs of the position table (patches.sine_cosine_table), a query the same pairs turned
    to where they are `offset` tokens on; wave lengths are spread over 6 to 60 tokens, as far as they go."""
    pairs = head_width // 2
    spread = max(1, width // 8 // pairs)
    query_KD, key_KD = torch.zeros(2, head_width, width)
    for j in range(pairs):
        at = 2 * j * spread
        angle = offset * 10000.0 ** (-at / width)
        turned = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        query_KD[2 * j : 2 * j + 2, at : at + 2] = turned
        key_KD[2 * j : 2 * j + 2, at : at + 2] = torch.eye(2)
    return query_KD, key_KD
