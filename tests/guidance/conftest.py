"""Folders of small towers, laid out as their users have them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from small_towers import PREPROCESSING, SENTENCES, randomise, small_clip, write_byte_vocabulary


@pytest.fixture(scope="session")
def clip_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    small_clip(write_byte_vocabulary(folder)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


@pytest.fixture
def clip(clip_source: Path, tmp_path: Path) -> Path:
    """A CLIP folder that a test may spoil."""
    return Path(shutil.copytree(clip_source, tmp_path / "clip"))


@pytest.fixture(scope="session")
def siglip_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece

    folder = tmp_path_factory.mktemp("siglip")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=44,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    config = transformers.SiglipConfig(
        text_config=dict(
            vocab_size=44,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            projection_size=48,
        ),
        vision_config=dict(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=48,
            patch_size=8,
        ),
    )
    tower = transformers.SiglipModel(config).eval()
    randomise(tower)
    tower.save_pretrained(folder)
    preprocessing = PREPROCESSING | {
        "size": {"height": 48, "width": 48},
        "image_processor_type": "SiglipImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.fixture
def siglip(siglip_source: Path, tmp_path: Path) -> Path:
    """A SigLIP folder that a test may spoil."""
    return Path(shutil.copytree(siglip_source, tmp_path / "siglip"))


@pytest.fixture(scope="session")
def frames() -> Callable[..., torch.Tensor]:
    def make(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

    return make
