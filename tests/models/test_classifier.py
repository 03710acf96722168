"""The classifier: VideoMAE's names, first values that the autoencoder shares."""

from __future__ import annotations

import re

import torch

from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.patches import gather_tokens, most_varied, patchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import SIZES, ModelOptions, run_blocks


def test_names_and_shapes_are_those_of_a_finetuned_videomae_file() -> None:
    with torch.device("meta"):
        state = VideoClassifier(SIZES["B"], 16, 224, classes=400).state_dict()
    outside = {name: tuple(value.shape) for name, value in state.items() if not name.startswith("blocks.")}
    assert outside == {
        "patch_embed.proj.weight": (768, 3, 2, 16, 16),
        "patch_embed.proj.bias": (768,),
        "fc_norm.weight": (768,),
        "fc_norm.bias": (768,),
        "head.weight": (400, 768),
        "head.bias": (400,),
    }
    inside = {re.sub(r"^blocks\.\d+\.", "", name) for name in state} - outside.keys()
    assert len(state) - len(outside) == 12 * len(inside) == 12 * 13
    assert {"attn.qkv.weight", "attn.q_bias", "attn.v_bias"} < inside


def test_the_encoder_starts_as_the_autoencoders() -> None:
    classifier = VideoClassifier(SIZES["tiny"], 4, 32, classes=5, seed=3).state_dict()
    encoder = MaskedVideoAutoencoder(SIZES["tiny"], 4, 32, seed=3).encoder.state_dict()
    for name in encoder.keys() - {"norm.weight", "norm.bias"}:
        assert torch.equal(classifier[name], encoder[name]), name
    assert 0.01 < classifier["head.weight"].std() < 0.03


def test_scores_are_the_head_over_the_normalised_mean_token() -> None:
    model = VideoClassifier(SIZES["tiny"], 4, 32, classes=5)
    torch.nn.init.normal_(model.fc_norm.bias)
    video = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder = MaskedVideoAutoencoder(SIZES["tiny"], 4, 32).encoder
    encoder.norm = torch.nn.Identity()
    encoder.norm.weight = torch.zeros(1)  # only its dtype is asked for
    tokens = encoder(patchify(video, 2, 8), None)
    expected = model.head(model.fc_norm(tokens.mean(1)))
    torch.testing.assert_close(model(video), expected)
    assert model(video).shape == (2, 5)
    assert VideoClassifier(SIZES["tiny"], 4, 32, classes=0)(video).shape == (2, 128)


def test_of_a_share_of_the_tokens_the_rest_plays_no_part() -> None:
    model = VideoClassifier(SIZES["tiny"], 4, 32, classes=5, options=ModelOptions("sdpa", token_share=0.29))
    assert model.tokens == 9, "0.29 of 32"
    video = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video[0, :, :, :16] //= 8
    patches = patchify(video, 2, 8)
    index = most_varied(patches, 9)
    assert not torch.equal(index[0], index[1]) and (index[0] % 16).min() >= 8, "of the lower half, which is not dim"
    tokens = model.patch_embed(gather_tokens(patches, index)) + model.positions.value[index]
    expected = model.head(model.fc_norm(run_blocks(model.blocks, tokens, False).mean(1)))
    torch.testing.assert_close(model(video), expected)
    dark = video.clone()
    dark[0, :, :, :16] = 0
    assert torch.equal(model(dark)[0], model(video)[0])
    assert VideoClassifier(SIZES["tiny"], 4, 32, 5, options=ModelOptions(token_share=1e-9)).tokens == 1
