"""A study of the debug model, and clips for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus

TINY = Path(__file__).parent / "tiny.yaml"


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study with the paths of its clips filled in."""
    folder = tmp_path_factory.mktemp("study")
    for name, seed in (("shards", 0), ("test", 1)):
        make_corpus(folder / name, 16, SyntheticSpec(mode="one_mover", seed=seed))
    text = TINY.read_text().replace("SHARDS", str(folder / "shards")).replace("TEST", str(folder / "test"))
    (folder / "tiny.yaml").write_text(text)
    return folder / "tiny.yaml"
