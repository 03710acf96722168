"""`predict`: the decoder predicts the frozen image tower's feature of each target token, in place of its pixels.

Latent targets of a frozen tower, as in masked video distillation (Wang et al. 2023, arXiv 2212.04500, section 3) and
InternVideo-Next (arXiv 2512.01342); here one linear head on the decoder's last layer."""

from __future__ import annotations

from torch import Tensor, nn

from tgm_scale.models.patches import gather_tokens
from tgm_scale.objectives.latent import feature_error
from tgm_scale.objectives.term import FEATURES, TARGETS, ClipTerm, ClipTermInputs, TermSettings


class Predict(ClipTerm):
    """The term `predict`: feature error of the target tokens, through a linear head."""

    needs = frozenset({TARGETS, FEATURES})

    def __init__(self, settings: TermSettings) -> None:
        super().__init__(settings)
        self.head = nn.Linear(settings.size.decoder_width, settings.features)

    def forward(self, inputs: ClipTermInputs) -> Tensor:
        assert inputs.decoded_BMK is not None and inputs.target_BM is not None and inputs.features_BNF is not None
        return feature_error(self.head(inputs.decoded_BMK), gather_tokens(inputs.features_BNF, inputs.target_BM))
