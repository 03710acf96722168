"""Files that others may read, too."""

from __future__ import annotations

from pathlib import Path


def readable_as_its_folder(file: Path, folder: Path) -> None:
    """Let those read and write a file who may read and write its folder: safetensors' writer leaves it to the owner
    alone, and colleagues could not load a checkpoint."""
    file.chmod(folder.stat().st_mode & 0o666)
