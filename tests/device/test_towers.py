"""The frozen towers on the `meta` device, in the shapes of published ones: CLIP ViT-B/32 and SigLIP B/16.

No weights: what is looked at is where their operators run, not what comes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from watch import META, Watch, empty, video

from tgm_scale.contracts import Grid
from tgm_scale.guidance.flow import FlowToBase
from tgm_scale.guidance.image import SCORERS, ImageTower, clip_trunk, siglip_trunk
from tgm_scale.guidance.maps import ClassAttention, Parts, Relevance
from tgm_scale.guidance.preprocessing import Preprocessing
from tgm_scale.guidance.text import CAPTIONS_PER_PASS, TextTower

PREPROCESSING = Preprocessing(224, True, "bicubic", (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
GRID, FRAMES, CLIPS = Grid(8, 14, 14), 16, 3
FAMILIES = ("clip", "siglip")


def image_model(family: str) -> Any:
    if family == "clip":
        config = CLIPVisionConfig(patch_size=32, projection_dim=512, attn_implementation="sdpa")
        return CLIPVisionModelWithProjection(config)
    return SiglipVisionModel(SiglipVisionConfig(attn_implementation="sdpa"))


@pytest.fixture(scope="module", params=FAMILIES)
def image(request: pytest.FixtureRequest) -> ImageTower:
    with META:
        model = image_model(request.param).to(torch.bfloat16).eval()
    trunk = clip_trunk(model) if request.param == "clip" else siglip_trunk(model)
    return ImageTower(trunk, PREPROCESSING, META)


@pytest.mark.parametrize("resolution", [None, 448])
@pytest.mark.parametrize("scorer", SCORERS)
def test_relevance_is_scored_without_waiting(image: ImageTower, scorer: str, resolution: int | None) -> None:
    relevance = Relevance(image, scorer, "one", resolution)
    with Watch() as watch:
        found = relevance.of_captions(video(CLIPS, FRAMES, 224), empty((CLIPS, 2, image.width)), GRID)
    assert not watch.waits
    assert found.shape == (CLIPS, 2, 8, 14, 14) and found.device == META and found.dtype == torch.float32


@pytest.mark.parametrize("look", [ClassAttention, Parts])
def test_attention_and_parts_are_found_without_waiting(image: ImageTower, look: Any) -> None:
    with Watch() as watch:
        found = look(image)(video(CLIPS, FRAMES, 224), GRID)
    assert not watch.waits
    assert found.shape == (CLIPS, 8, 14, 14) and found.device == META


def test_pictures_of_another_size_are_brought_to_the_towers_without_waiting(image: ImageTower) -> None:
    with Watch() as watch:
        found = image.embed(empty((2, 3, 240, 320), torch.uint8))
    assert not watch.waits and found.shape == (2, image.width)


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_embedded_without_waiting(family: str) -> None:
    with META:
        if family == "clip":
            config = CLIPTextConfig(projection_dim=512, attn_implementation="sdpa")
            model, output = CLIPTextModelWithProjection(config), "text_embeds"
        else:
            config = SiglipTextConfig(attn_implementation="sdpa")
            model, output = SiglipTextModel(config), "pooler_output"
    length, width = config.max_position_embeddings, 512 if family == "clip" else config.projection_size
    model = model.to(torch.bfloat16).eval()
    passes = []

    def tokenize(captions: list[str]) -> Tensor:
        return torch.zeros(len(captions), length, dtype=torch.int64)

    def embed(ids_BL: Tensor) -> Tensor:
        passes.append(len(ids_BL))
        return getattr(model(input_ids=ids_BL), output)

    tower = TextTower(tokenize, embed, width, META)
    with Watch() as watch:
        found = tower.encode([f"caption {i % 70}" for i in range(80)])
        tower.encode(["caption 3", "caption 69"])
    assert not watch.waits
    assert found.shape == (80, width) and found.device == META
    assert passes == [CAPTIONS_PER_PASS, CAPTIONS_PER_PASS], "the last pass is filled up; known captions take none"


def test_raft_waits_only_where_torchvision_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two grids a pass and one in each update are made on the host. Weights of no value; no file is read."""
    from tgm_scale.guidance import flow
    from tgm_scale.runtime.compat import prepare_torchvision

    prepare_torchvision()
    from torchvision.models.optical_flow import raft_small

    weights = raft_small(weights=None).state_dict()
    monkeypatch.setattr(flow, "_raft_weights", lambda file: weights)
    estimate = FlowToBase("raft.pth", META)
    with Watch() as watch:
        found = estimate(video(CLIPS, 4, 64), Grid(2, 8, 8))
    assert watch.waits == {"guidance/flow.py:estimate: a blocking copy to the device": 2 + flow.RAFT_UPDATES}
    assert found.shape == (CLIPS, 4, 2, 16, 16) and found.device == META
