"""`adversary`: a learned mask is trained to hide what is hard to reconstruct, against the model that learns to do so.

After AutoMAE (Chen et al. 2023, arXiv 2303.06583), whose mask generator gets its gradient through a Gumbel-softmax;
docs/RECIPES.md lists the differences. The mask is the hard one, as it was drawn; its gradient is that of the relaxed
one (Jang et al. 2017, arXiv 1611.01144: straight-through)."""

from __future__ import annotations

from torch import Tensor

from tgm_scale.objectives.policy import LearnedMaskTerm
from tgm_scale.objectives.term import ClipTermInputs


class Adversary(LearnedMaskTerm):
    """The term `adversary`: minus the mean of e, weighted by the relaxed mask. e is a token's error of pixels, as a
    constant; the weights are the softmax, over a clip's targets, of the logits with the noise of the draw. Visible
    tokens have no error, and take no part."""

    def forward(self, inputs: ClipTermInputs) -> Tensor:
        assert inputs.log_probability_BM is not None
        return -(inputs.log_probability_BM.softmax(dim=1) * self.errors(inputs)).sum(1)
