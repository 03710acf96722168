"""Model and temperature in one module for the engine. Shapes: B clips, E embedding width, V visible, M targets."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.objectives.contrastive import initial_log_scale
from tgm_scale.objectives.reconstruction import clip_statistics, reconstruction_error

NormaliseBy = Literal["patch", "clip"]


class JointModule(nn.Module):
    """The masked autoencoder with the learnable temperature of the contrastive term (CLIP, section 2.5)."""

    def __init__(self, model: MaskedVideoAutoencoder, contrastive: bool, normalise_by: NormaliseBy = "patch"):
        """normalise_by: whose mean and deviation the pixels to reconstruct are normalised by."""
        super().__init__()
        self.model = model
        self.normalise_by = normalise_by
        self.log_scale = nn.Parameter(initial_log_scale().reshape(1)) if contrastive else None

    def forward(
        self, video_BCTHW: Tensor, visible_BV: Tensor, target_BM: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Reconstruction error [B] (without targets: None), embedding [B, E] and log scale [1] (or None), fp32."""
        output = self.model(video_BCTHW, visible_BV, target_BM)
        error_B = None
        if target_BM is not None:
            statistics = clip_statistics(video_BCTHW) if self.normalise_by == "clip" else None
            error_B = reconstruction_error(output.prediction_BMP, output.target_BMP, statistics)
        # times one: a parameter that leaves the module itself would be partitioned under the loss at ZeRO-3
        log_scale = None if self.log_scale is None else self.log_scale.float() * 1.0
        return error_B, output.embedding_BE, log_scale
