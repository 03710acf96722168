"""Files that others may read: as their folder and the umask have it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tgm_scale.runtime.files import readable_as_its_folder


@pytest.mark.parametrize(
    ("folder_mode", "umask", "wanted"),
    [(0o777, 0o022, 0o644), (0o777, 0o077, 0o600), (0o775, 0o002, 0o664), (0o700, 0o022, 0o600), (0o777, 0, 0o666)],
)
def test_the_umask_counts_beside_the_folder(tmp_path: Path, folder_mode: int, umask: int, wanted: int) -> None:
    before = os.umask(umask)
    try:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        folder.chmod(folder_mode)
        file = folder / "state"
        file.touch(0o600)
        readable_as_its_folder(file, folder)
        assert stat.S_IMODE(file.stat().st_mode) == wanted and os.listdir(folder) == ["state"]
    finally:
        os.umask(before)
