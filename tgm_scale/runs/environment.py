"""Environment of a start: versions of packages, host, commit, SLURM job; a line of RUN/environment.jsonl."""

from __future__ import annotations

import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tgm_scale.runtime import launch


def of_this_start() -> dict[str, Any]:
    """Return versions, host, git state and job of this start."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": versions(),
        **_git_state(),
        **launch.job(),
    }


def versions() -> dict[str, str | None]:
    """Return the installed versions of the packages that determine a run's numbers."""
    packages = ("tgm_scale", "torch", "deepspeed", "transformers", "webdataset", "av", "numpy")
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any]:
    """Return the commit of our own checkout and whether it was changed; None for an installed package, even where its
    virtual environment lies in somebody else's repository."""
    root = Path(__file__).resolve().parents[2]
    own = (root / "setup.cfg").is_file() and Path(_git(root, "rev-parse", "--show-toplevel") or "/").samefile(root)
    commit = _git(root, "rev-parse", "HEAD") if own else None
    return {"git": commit, "git_dirty": None if commit is None else bool(_git(root, "status", "--porcelain"))}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
