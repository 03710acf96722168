"""What several files here set up."""

from __future__ import annotations

import pytest

from tgm_scale.data.access import patience


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No index of another test's, and no long waits for a storage."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
