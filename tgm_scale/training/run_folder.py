"""The run folder: what the run is, so that it can be gone on with, compared and understood.

RUN/config.yaml       the configuration as resolved
RUN/data.json         the corpora it reads: name, samples, fingerprint, what was left out
RUN/origins.json      the frozen models and first weights that it reads, by content (training/origins.py)
RUN/plan.json         what followed from it: steps, batch layout, stage
RUN/files.json         size and time of files of lists at the first start
RUN/environment.jsonl versions, git state and host of each start
RUN/metrics.jsonl     one line a step
RUN/owner/            which start owns the folder (runtime/ownership.py)
RUN/skipped.jsonl     every broken sample: step, key, reason
RUN/events.jsonl      damage that a start found: checkpoints set aside, lines of metrics.jsonl moved
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.config import RunSettings
from tgm_scale.runtime import ownership, slurm
from tgm_scale.runtime.distributed import Control
from tgm_scale.runtime.outside.json_text import json_file, json_object, json_of
from tgm_scale.runtime.secrets import tree_without_secrets
from tgm_scale.training import manifest, origins


def replace_file(path: Path, text: str, durable: bool = True) -> None:
    """Write a file so that a reader, or the next start, sees the old text or the new one, never a part.

    durable: also where the host loses its power."""
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    temporary.rename(path)


def claim(config: RunSettings) -> Path:
    """Make or recognise the run folder. Raises ValueError where it cannot be written or holds another run."""
    folder = Path(config.run.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{platform.node()}-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"run.dir={folder}: cannot be written ({error.strerror}): choose another folder") from None
    file = folder / "config.yaml"
    if file.is_file():
        _refuse_other_run(config, file)
    elif any(manifest.step_of(found) is not None for found in folder.glob("checkpoints/step-*")):
        raise ValueError(f"run.dir={folder}: has checkpoints but no config.yaml: choose another folder")
    return folder


@contextmanager
def owned(folder: Path, control: Control) -> Iterator[None]:
    """Own the run folder for as long as the context lasts, by the main process. Collective.

    Raises ValueError on every rank where another start has it."""
    refused: Exception | None = None
    with ExitStack() as stack:
        if control.place.is_main:
            try:
                stack.enter_context(ownership.owned(folder))
            except (ValueError, OSError) as error:
                refused = error
        if refused := control.broadcast(refused):
            raise refused
        yield


def _refuse_other_run(config: RunSettings, file: Path) -> None:
    before = configuration.checked(configuration.read_tree(file), str(file), type(config))
    there, here = (tree_without_secrets(configuration.digest_tree(one)) for one in (before, config))
    differing = [
        f"{section}.{key}: {there[section].get(key)!r} there, {value!r} here"
        for section, values in here.items()
        for key, value in values.items()
        if there[section].get(key) != value and f"{section}.{key}" not in origins.KEYS
    ]
    differing += origins.complaints(there, here, origins.read(file.parent))
    if differing:
        raise ValueError(
            f"run.dir={file.parent}: holds a run of another configuration ({'; '.join(differing)}): set run.dir to a "
            "new folder, or give the same values to go on with this one"
        )


def shown(config: configuration.Section) -> str:
    """A configuration as YAML to print and keep: its addresses let nobody in."""
    return configuration.written(tree_without_secrets(config.model_dump(mode="json")))


def describe(
    folder: Path, config: RunSettings, corpora: list[dict[str, Any]], plan: dict[str, Any], step: int
) -> None:
    """Write what this start is. Raises ValueError where the data is not that of the run so far."""
    data_file = folder / "data.json"
    if data_file.is_file():
        before = read_data(folder)
        if _other_data(before, corpora):
            raise ValueError(
                f"{data_file}: the run was started on other data ({_summary(before)}; now {_summary(corpora)}): "
                "restore the shards, or start a new run folder with train.init_from"
            )
    replace_file(folder / "config.yaml", shown(config))
    replace_file(data_file, json.dumps(tree_without_secrets(corpora), indent=1))
    read = origins.renewed(config.model_dump(mode="json"), origins.read(folder), step)
    replace_file(folder / origins.FILE, json.dumps(tree_without_secrets(read), indent=1))
    replace_file(folder / "plan.json", json.dumps(plan, indent=1))
    with (folder / "environment.jsonl").open("a") as stream:
        stream.write(json.dumps(environment() | {"step": step}) + "\n")


def _other_data(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> bool:
    """Whether samples, captions, labels or their order are others. What an earlier version did not note is not
    compared: the content of lists, the test part."""
    if not any(corpus.get("part") == "test" for corpus in before):
        now = [corpus for corpus in now if corpus.get("part") != "test"]
    if len(before) != len(now):
        return True
    return any(
        one.get(key) != other.get(key)
        for one, other in zip(before, now)
        for key in ("name", "samples", "fingerprint", "content")
        if key != "content" or key in one
    )


def read_data(folder: Path) -> list[dict[str, Any]]:
    """The corpora of the run so far, from its data.json. Raises ValueError where that is damaged."""
    file = folder / "data.json"
    found = json_file(file)
    if not isinstance(found, list) or not all(isinstance(one, dict) and "name" in one for one in found):
        raise ValueError(f"{file}: damaged: wanted a list of corpora with their names; restore it")
    return found


def read_plan(folder: Path) -> dict[str, Any]:
    return json_object(folder / "plan.json")


def starts(folder: Path) -> list[dict[str, Any]]:
    """The environment of each start of the run, oldest first. Raises ValueError that names a damaged line."""
    file = folder / "environment.jsonl"
    found = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            found.append(json_of(line))
        except ValueError:
            raise ValueError(f"{file}: line {number} is damaged: remove that line") from None
    return found


def _summary(corpora: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{corpus['name']}: {corpus.get('samples')} samples, "
        f"{' '.join(filter(None, (corpus.get('fingerprint'), corpus.get('content'))))}"
        for corpus in corpora
    )


def environment() -> dict[str, Any]:
    """Versions, host, git state and job of this start."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": versions(),
        **_git_state(),
        **slurm.job(),
    }


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that decide a run's numbers."""
    packages = ("tgm_scale", "torch", "deepspeed", "transformers", "webdataset", "av", "torchcodec", "numpy")
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any]:
    """Commit of our own checkout and whether it was changed; None for an installed package, also where its virtual
    environment lies in somebody else's repository."""
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
