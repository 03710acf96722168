"""`align`: the encoder's output for a visible token is matched to the frozen image tower's feature of its place.

Unmasked Teacher (Li et al. 2023, arXiv 2303.16058, section 3.1), with one linear head on the encoder's last layer; in
the paper several of the last layers have one each."""

from __future__ import annotations

from torch import Tensor, nn

from tgm_scale.models.patches import gather_tokens
from tgm_scale.objectives.latent import feature_error
from tgm_scale.objectives.term import FEATURES, ClipTerm, ClipTermInputs, TermSettings


class Align(ClipTerm):
    """The term `align`: feature error of the visible tokens, through a linear head."""

    needs = frozenset({FEATURES})

    def __init__(self, settings: TermSettings) -> None:
        super().__init__(settings)
        self.head = nn.Linear(settings.size.width, settings.features)

    def forward(self, inputs: ClipTermInputs) -> Tensor:
        assert inputs.features_BNF is not None
        return feature_error(self.head(inputs.tokens_BVD), gather_tokens(inputs.features_BNF, inputs.visible_BV))
