"""`policy`: a learned mask is trained to show what is hard to reconstruct.

AdaMAE (Bandara et al. 2023, arXiv 2211.09120, section 3.3): the policy gradient (REINFORCE) of the expected error of
the hidden tokens, which raises a token's probability of being visible with its error."""

from __future__ import annotations

from torch import Tensor

from tgm_scale.objectives.reconstruction import PixelTerm, token_errors
from tgm_scale.objectives.term import MASKS, ClipTermInputs

WEIGHT = 1e-4  # AdaMAE's; default of any term that a learned mask brings


class LearnedMaskTerm(PixelTerm):
    """Base of the terms that teach a learned mask by the targets' errors of pixels. Its gradient reaches the mask's
    own parameters alone."""

    needs = PixelTerm.needs | {MASKS}

    def errors(self, inputs: ClipTermInputs) -> Tensor:
        """Return the error of each target, as a constant: float32 [B, M]."""
        assert inputs.prediction_BMP is not None and inputs.patches_BMP is not None
        return token_errors(inputs.prediction_BMP.detach(), inputs.patches_BMP, self.statistics(inputs))


class Policy(LearnedMaskTerm):
    """The term `policy`: -log(p) e, averaged over each clip's targets; p is a token's probability by the learned mask,
    e its error of pixels as a constant."""

    def forward(self, inputs: ClipTermInputs) -> Tensor:
        assert inputs.log_probability_BM is not None
        return -(inputs.log_probability_BM * self.errors(inputs)).mean(1)
