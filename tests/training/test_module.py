"""The module that the engine trains: whose statistics its targets are normalised by."""

from __future__ import annotations

import torch

from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.models.patches import channel_last, gather_tokens, patchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions, ModelSize
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective

SIZE = ModelSize(24, 1, 2, 48, 16, 1, 2, 32, patch=8)


def test_targets_of_the_clip_keep_each_patch_s_brightness() -> None:
    """The error by its definition; a patch brighter than the clip's mean is a target above 0."""
    model = MaskedVideoAutoencoder(SIZE, frames=4, image_size=16, options=ModelOptions("sdpa"), seed=1)
    video = torch.randint(256, (2, 3, 4, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    visible, target = torch.tensor([[0, 3, 5]] * 2), torch.tensor([[1, 2, 4, 6, 7]] * 2)
    of_clip, of_patch = (
        JointModule(model, Objective.of({"pixels": 1.0}, TermSettings(SIZE, normalise_by=by)))(video, visible, target)
        for by in ("clip", "patch")
    )
    [error_B], [of_patch_B] = of_clip.errors_TB, of_patch.errors_TB
    assert not torch.allclose(error_B, of_patch_B)

    x = video.double()
    whole = (x - x.mean((2, 3, 4), keepdim=True)) / x.flatten(2).std(2)[..., None, None, None]
    wanted = channel_last(gather_tokens(patchify(whole, 2, 8), target))
    prediction = model(video, visible, target).prediction_BMP.double()
    torch.testing.assert_close(error_B.double(), (prediction - wanted).square().mean((1, 2)), rtol=1e-5, atol=0)
