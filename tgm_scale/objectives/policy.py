"""`policy`: a learned mask is trained to show what is hard to reconstruct.

AdaMAE (Bandara et al. 2023, arXiv 2211.09120, section 3.3): the policy gradient (REINFORCE) of the expected error of
the hidden tokens, which raises a token's probability of being visible with its error."""

from __future__ import annotations

from torch import Tensor

from tgm_scale.objectives.reconstruction import clip_statistics, token_errors
from tgm_scale.objectives.term import MASKS, PIXELS, TARGETS, ClipTerm, ClipTermInputs, TermSettings

WEIGHT = 1e-4  # AdaMAE's; default of any term that a learned mask brings


class LearnedMaskTerm(ClipTerm):
    """Base of the terms that teach a learned mask by the targets' errors of pixels. Its gradient reaches the mask's
    own parameters alone."""

    needs = frozenset({TARGETS, PIXELS, MASKS})

    def __init__(self, settings: TermSettings) -> None:
        super().__init__(settings)
        self.by_clip = settings.normalise_by == "clip"

    def errors(self, inputs: ClipTermInputs) -> Tensor:
        """Return the error of each target, as a constant: float32 [B, M]."""
        assert inputs.prediction_BMP is not None and inputs.patches_BMP is not None
        statistics = clip_statistics(inputs.video_BCTHW) if self.by_clip else None
        return token_errors(inputs.prediction_BMP.detach(), inputs.patches_BMP, statistics)


class Policy(LearnedMaskTerm):
    """The term `policy`: -log(p) e, averaged over each clip's targets; p is a token's probability by the learned mask,
    e its error of pixels as a constant."""

    def forward(self, inputs: ClipTermInputs) -> Tensor:
        assert inputs.log_probability_BM is not None
        return -(inputs.log_probability_BM * self.errors(inputs)).mean(1)
