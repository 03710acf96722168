"""The masked video autoencoder: encoder on visible tokens, light decoder over targets, projection for the contrast.

Shapes: B clips, C=3, T frames, H W pixels; N tokens of the grid, V visible, M targets; D width of the encoder, K of
the decoder, P values of a patch, E width of the text embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.contracts import Grid
from tgm_scale.models.patches import Positions, gather_tokens, patchify
from tgm_scale.models.vit import DEFAULT_OPTIONS, Decoder, Encoder, ModelOptions, ModelSize, initialise
from tgm_scale.runtime.precision import without_autocast


class Output(NamedTuple):
    """Outputs of one pass; a NamedTuple, since ZeRO-3's hooks look for tensors in tuples, not in dataclasses."""

    tokens_BVD: Tensor  # visible tokens after the encoder's norm, of the model's dtype
    decoded_BMK: Tensor | None  # target tokens after the decoder's norm, of the model's dtype; None without a target
    prediction_BMP: Tensor | None  # float32, order (frame, row, column, channel); None without `pixels`
    target_BMP: Tensor | None  # the target tokens' patches, of the video's dtype, order (channel, frame, row, column)
    embedding_BE: Tensor | None  # float32, not normalised; None for a model without a projection


class Projection(nn.Linear):
    """A linear layer without bias, computed in float32 regardless of its weight's dtype and autocast (FLIP's head)."""

    def __init__(self, width: int, embedding_width: int) -> None:
        super().__init__(width, embedding_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            return F.linear(x.float(), self.weight.float())


class MaskedVideoAutoencoder(nn.Module):
    """VideoMAE (Tong et al. 2022) with a projection of its mean visible token, as in the joint framework of
    "Text-Guided Video Masked Autoencoder" (Fan et al. 2024). Weight names are VideoMAE's, and `projection.weight`; the
    decoder with cross-attention (see `vit.Decoder`) is not in VideoMAE and has names of its own.

    Weights are initialised in float32, keyed by name and `seed`. If it is built under torch.device("meta"), call
    `to_empty` and then `vit.initialise(model, seed)`. Cast to bf16 it keeps float32 for pixel statistics, position
    sums, predictions and embeddings.

    embedding_width: width of the text embeddings that the projection is compared with; None leaves it out. Raises
    ValueError where `frames` or `image_size` do not divide into the size's tubelets and patches."""

    def __init__(
        self,
        size: ModelSize,
        frames: int,
        image_size: int,
        *,
        options: ModelOptions = DEFAULT_OPTIONS,
        embedding_width: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        others = options.origin is not None or options.drop_path or options.token_share < 1
        assert not others, "of an encoder or a classifier alone"
        self.size, self.options = size, options
        self.grid = Grid.of(frames, image_size, size.tubelet, size.patch)
        self.clip_shape = (3, frames, image_size, image_size)
        self.encoder = Encoder(size, self.grid, options)
        self.encoder_to_decoder = nn.Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.decoder_width))
        self.decoder_positions = Positions(self.grid, size.decoder_width)
        self.decoder = Decoder(size, options)
        self.projection = None if embedding_width is None else Projection(size.width, embedding_width)
        initialise(self, seed)

    def forward(
        self, video_BCTHW: Tensor, visible_BV: Tensor, target_BM: Tensor | None = None, pixels: bool = True
    ) -> Output:
        """Run one pass. video: 0..255, uint8 (or float); visible, target: disjoint int64 indices of tokens
        (`contracts.Mask`).

        Without a target the decoder does not run: encoder and projection alone, as the first pass of cached
        contrastive gradients needs. pixels: whether the targets' pixels are predicted; else they are decoded for other
        heads. Raises ValueError for a clip of another shape than the model was built for."""
        patches_BNP = self._patchify(video_BCTHW)
        tokens_BVD = self.encoder(gather_tokens(patches_BNP, visible_BV), visible_BV)
        decoded_BMK = prediction_BMP = target_patches_BMP = embedding_BE = None
        if target_BM is not None:
            decoded_BMK = self.decoded(tokens_BVD, visible_BV, target_BM)
            if pixels:
                prediction_BMP = self.decoder.head(decoded_BMK).float()
            target_patches_BMP = gather_tokens(patches_BNP, target_BM)
        if self.projection is not None:
            embedding_BE = self.projection(tokens_BVD.float().mean(1))
        return Output(tokens_BVD, decoded_BMK, prediction_BMP, target_patches_BMP, embedding_BE)

    def encode(self, video_BCTHW: Tensor, visible_BV: Tensor | None = None) -> Tensor:
        """Return the tokens after the encoder's norm, [B, V, D]; with no `visible`, the whole clip's in order."""
        patches_BNP = self._patchify(video_BCTHW)
        if visible_BV is not None:
            patches_BNP = gather_tokens(patches_BNP, visible_BV)
        return self.encoder(patches_BNP, visible_BV)

    @torch.no_grad()
    def embedded(self, video_BCTHW: Tensor) -> Tensor:
        """Return the embeddings of all patches in order, before positions: [B, N, D], without a gradient."""
        found: Tensor = self.encoder.patch_embed(self._patchify(video_BCTHW))
        return found

    def decode(self, tokens_BVD: Tensor, visible_BV: Tensor, target_BM: Tensor) -> Tensor:
        """Return the pixels of the target tokens, predicted from the visible ones: float32 [B, M, P]."""
        return self.decoder.head(self.decoded(tokens_BVD, visible_BV, target_BM)).float()

    def decoded(self, tokens_BVD: Tensor, visible_BV: Tensor, target_BM: Tensor) -> Tensor:
        """Return the target tokens after the decoder's norm, before any head: [B, M, K].

        Tokens that are neither visible nor targets are not decoded, so fewer targets are cheaper. With self-attention
        that changes the predictions somewhat: they are not a selection from those of more targets. With
        cross-attention (`ModelSize.decoder_attention`) they are."""
        dtype = self.mask_token.dtype
        visible = self.decoder_positions(self.encoder_to_decoder(tokens_BVD), visible_BV, dtype)
        target = self.decoder_positions(self.mask_token, target_BM, dtype)
        return self.decoder(visible, target)

    def _patchify(self, video_BCTHW: Tensor) -> Tensor:
        if video_BCTHW.shape[1:] != self.clip_shape:
            raise ValueError(
                f"the model was built for clips of [channels, frames, height, width] = {list(self.clip_shape)}, "
                f"this one has {list(video_BCTHW.shape[1:])}; build it with the clip's frames and image_size"
            )
        return patchify(video_BCTHW, self.size.tubelet, self.size.patch)


def block_macs(tokens: int, width: int, mlp: int, context: int | None = None) -> int:
    """Return the multiply-accumulates of one block. context: tokens that are attended to, where they are others: keys
    and values are computed from those."""
    read = tokens if context is None else context
    return 2 * (tokens + read) * width**2 + 2 * tokens * width * mlp + 2 * tokens * read * width


def macs_per_clip(size: ModelSize, frames: int, image_size: int, visible: int, targets: int) -> int:
    """Return the multiply-accumulates of one clip's forward pass: matrix products and attention, without norms and
    activations.

    Counts what this model computes: only visible patches are embedded, only targets decoded. (Published counts for
    VideoMAE embed all patches: at 16 frames of 224 that adds 1.7 G to ViT-B's 33.8.) A training step costs three
    forward passes, four with activation checkpointing; one multiply-accumulate is two FLOPs."""
    Grid.of(frames, image_size, size.tubelet, size.patch)

    encoder = visible * size.patch_values * size.width + size.depth * block_macs(visible, size.width, size.mlp)
    if not targets:
        return encoder
    decoder = visible * size.width * size.decoder_width + targets * size.decoder_width * size.patch_values
    if size.decoder_attention == "cross":
        of_block = block_macs(targets, size.decoder_width, size.decoder_mlp, context=visible)
    else:
        of_block = block_macs(visible + targets, size.decoder_width, size.decoder_mlp)
    return encoder + decoder + size.decoder_depth * of_block
