"""Model and temperature in one module for the engine. Shapes: B clips, E embedding width, V visible, M targets."""

from __future__ import annotations

from torch import Tensor, nn

from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.objectives.contrastive import initial_log_scale
from tgm_scale.objectives.reconstruction import reconstruction_error


class JointModule(nn.Module):
    """The masked autoencoder with the learnable temperature of the contrastive term (CLIP, section 2.5)."""

    def __init__(self, model: MaskedVideoAutoencoder, contrastive: bool):
        super().__init__()
        self.model = model
        self.log_scale = nn.Parameter(initial_log_scale().reshape(1)) if contrastive else None

    def forward(
        self, video_BCTHW: Tensor, visible_BV: Tensor, target_BM: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Reconstruction error [B] (without targets: None), embedding [B, E] and log scale [1] (or None), fp32."""
        output = self.model(video_BCTHW, visible_BV, target_BM)
        error_B = None
        if target_BM is not None:
            error_B = reconstruction_error(output.prediction_BMP, output.target_BMP)
        # times one: a parameter that leaves the module itself would be partitioned under the loss at ZeRO-3
        log_scale = None if self.log_scale is None else self.log_scale.float() * 1.0
        return error_B, output.embedding_BE, log_scale
