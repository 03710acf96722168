"""A small labelled corpus and a checkpoint of a small joint model, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale.conversion.convert import convert
from tgm_scale.conversion.key_maps import ModelMetadata
from tgm_scale.conversion.weights import Weights
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions, ModelSize

SIZE = ModelSize(24, 1, 2, 48, 16, 1, 2, 32, patch=8)
SPEC = SyntheticSpec(size=32, frames=8, seed=1, mode="one_mover")
CLIPS = 37  # no multiple of the batch
SHAPE = "truth.objects.0.shape"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mover")
    make_corpus(folder, CLIPS, SPEC, clips_per_shard=10)
    return str(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of seed 7 with a projection to 24 numbers, as tests/conftest.py's towers have."""
    model = MaskedVideoAutoencoder(
        SIZE, frames=4, image_size=32, options=ModelOptions("sdpa"), embedding_width=24, seed=7
    )
    stated = ModelMetadata(2, 2, 4, 32, None, {"data": {"stride": 2}})
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    convert(Weights.of("pretraining", model.state_dict(), stated, []), path, "safetensors")
    return path
