"""Training objective of the small CLIP, on images with labelled patches.

Three terms, on cosines of patch and caption embeddings (last layer, final norm, projection):
- pattern: regression of a patch's cosines (times a learned scale) to 1 for its own concept, `half_match` for concepts
  that share one attribute with it, and 0 for the others; for a patch without a concept, to a level adapted so that a
  caption of something absent ranks objects above the background as often as below. So a caption ranks its object above
  the background and look-alikes below it, and is uninformative where it names something absent;
- naming: cross entropy of the concept, and of each attribute alone;
- image: the sigmoid loss (arXiv 2303.15343) of the pooled image embedding, as in an ordinary CLIP.

Shapes: N images, P patches, C concepts, X captions (of the concepts, then of each attribute's values), E embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOTHING, MIXED = -1, -2  # labels of a patch without a concept, and of one at a concept's edge


@dataclass(frozen=True)
class LabelledImages:
    """Batch of images with the labels of their patches."""

    images: Tensor  # uint8 [N, 3, H, W] RGB
    label_NP: Tensor  # int64 [N, P]: the concept, NOTHING or MIXED
    present_NC: Tensor  # bool [N, C]: the concepts in the image


class Objective(nn.Module):
    """Sum of the three terms, with their learned scales.

    attributes: for each attribute an int64 [C], its value for each concept."""

    def __init__(self, attributes: list[Tensor], half_match: float):
        super().__init__()
        self.attributes = attributes
        shared_CC = torch.stack([a[:, None] == a[None] for a in attributes]).sum(0)
        count = len(attributes)
        self.pattern_CC = torch.where(shared_CC == count, 1.0, torch.where(shared_CC > 0, half_match, 0.0))
        self.naming_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.pattern_scale = nn.Parameter(torch.tensor(math.log(2.0)))
        self.bias = nn.Parameter(torch.tensor(-4.0))
        self.level = torch.tensor(-0.03)  # of patches without a concept

    def forward(
        self,
        image_NE: Tensor,
        patch_NPE: Tensor,
        caption_XE: Tensor,
        logit_scale: Tensor,
        batch: LabelledImages,
        pattern_weight: float,
    ) -> Tensor:
        """Return the loss. caption_XE: captions of the C concepts, then of each attribute's values.
        pattern_weight: 0 to 1."""
        concepts = len(self.pattern_CC)
        cosine_NPX = patch_NPE @ caption_XE.T
        shown_NP = batch.label_NP >= 0
        label = batch.label_NP[shown_NP]
        naming = self._naming(cosine_NPX[shown_NP] * self.naming_scale.exp().clamp(max=60), label)
        predicted_NPC = cosine_NPX[..., :concepts] * self.pattern_scale.exp()
        self.level = self.level + 0.004 * (self._absent_above(predicted_NPC.detach(), batch) - 0.5)
        pattern = self._pattern(predicted_NPC, batch)
        logits_NC = image_NE @ caption_XE[:concepts].T * logit_scale.exp().clamp(max=100) + self.bias
        each = F.binary_cross_entropy_with_logits(logits_NC, batch.present_NC.float(), reduction="none")
        image = 0.5 * (each[batch.present_NC].mean() + each[~batch.present_NC].mean())
        return 0.3 * naming + 20 * pattern_weight * pattern + 0.2 * image

    def _absent_above(self, predicted_NPC: Tensor, batch: LabelledImages) -> Tensor:
        """Return how often, for concepts without any attribute in the image, an object's patch scores above a patch
        without an object."""
        absent_NC = self._absent(batch)
        above_NPPC = predicted_NPC[:, :, None] > predicted_NPC[:, None]
        pairs_NPP = (batch.label_NP >= 0)[:, :, None] & (batch.label_NP < 0)[:, None]
        counted_NPPC = pairs_NPP[..., None] & absent_NC[:, None, None]
        return (above_NPPC & counted_NPPC).sum() / counted_NPPC.sum().clamp(min=1)

    def _absent(self, batch: LabelledImages) -> Tensor:
        """Return the concepts without any attribute in the image: bool [N, C]."""
        return ~(batch.present_NC.float() @ (self.pattern_CC != 0).float()).bool()

    def _naming(self, logits: Tensor, label: Tensor) -> Tensor:
        start = len(self.pattern_CC)
        loss = F.cross_entropy(logits[:, :start], label)
        for attribute in self.attributes:
            end = start + int(attribute.max()) + 1
            loss = loss + 0.4 * F.cross_entropy(logits[:, start:end], attribute[label])
            start = end
        return loss

    def _pattern(self, predicted_NPC: Tensor, batch: LabelledImages) -> Tensor:
        shown_NP1, mixed_NP1 = ((batch.label_NP >= 0)[..., None], (batch.label_NP == MIXED)[..., None])
        wanted_NPC = self.pattern_CC[batch.label_NP.clamp(min=0)]
        target_NPC = torch.where(shown_NP1, wanted_NPC, self.level)
        # a mixed patch is trained on absent concepts only: which of the present ones it shows is ambiguous
        absent_N1C = 2.0 * self._absent(batch)[:, None].float()
        weight_NPC = torch.where(mixed_NP1, absent_N1C, torch.where(shown_NP1, 3.0, 1.0))
        error = (predicted_NPC - target_NPC).square() * torch.where(target_NPC == 1, 8.0, 1.0)
        return (error * weight_NPC).sum() / weight_NPC.sum()
