"""The run folder: the files that let a run be resumed, compared and understood.

RUN/config.yaml       the resolved configuration
RUN/data.json         the corpora it reads: name, samples, fingerprint, counts of samples left out
RUN/origins.json      the frozen models and first weights that it reads, by content (runs/origins.py)
RUN/plan.json         values derived from these: steps, batch layout, stage
RUN/files.json        size and time of the files in lists at the first start
RUN/environment.jsonl versions, git state and host of each start
RUN/metrics.jsonl     one line per step
RUN/owner/            which start owns the folder (runtime/ownership.py)
RUN/skipped.jsonl     every broken sample: step, key, reason
RUN/events.jsonl      damage found by a start, rollbacks, reasons of failures
RUN/faults.json       state that outlives a rollback (runs/faults.py)
RUN/pictures/         masks and reconstructions of log.pictures_every (runs/pictures.py)
RUN/profile/          traces of profile.steps (training/profiling.py)
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from tgm_scale import config as configuration
from tgm_scale.checkpoints import folders
from tgm_scale.config import RunSettings
from tgm_scale.runs import environment, events, origins, run_data
from tgm_scale.runtime import ownership
from tgm_scale.runtime.files import in_the_way, replace_file
from tgm_scale.runtime.mistakes import refuse_damaged
from tgm_scale.runtime.outside.json_text import json_object, json_of
from tgm_scale.runtime.terminal import tree_without_secrets, without_secrets

if TYPE_CHECKING:
    from tgm_scale.runtime.distributed import HostCollectives

FILES = (
    *("config.yaml", "data.json", "origins.json", "plan.json", "files.json", "faults.json", "environment.jsonl"),
    *("metrics.jsonl", "skipped.jsonl", "events.jsonl", "refused.jsonl", "left_out.jsonl"),
)
FOLDERS = ("checkpoints", "owner", "ranks", "pictures")
FAILED = "failed"  # kind of event
_RUNS_NAMED = 5  # runs to name in a folder that is not itself a run
_WHY = 500  # letters of a reason to keep


def open_folder(config: RunSettings) -> Path:
    """Create or recognise the run folder. Raises ValueError where it cannot be written or holds another run, and,
    before creating it, where the initial weights are missing."""
    folder = Path(config.run.dir)
    file = folder / "config.yaml"
    origins.refuse_missing(config, begun=os.path.lexists(file))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / probe()
        trial.touch()
        trial.unlink()
    except OSError as error:
        why = in_the_way(folder) or f"cannot be written ({error.strerror}): choose another folder"
        raise ValueError(f"run.dir={folder}: {why}") from None
    if odd := misplaced(folder):
        raise ValueError(f"{folder / odd[0]}: something else has the name of a run's file or folder: move it away")
    if file.is_file():
        _refuse_other_run(config, file)
    elif any(folders.step_of(found) is not None for found in folder.glob("checkpoints/step-*")):
        raise ValueError(f"run.dir={folder}: has checkpoints but no config.yaml: choose another folder")
    return folder


def no_run(folder: Path) -> str:
    """Return a message on a folder that is not a run: a study if it is one, and a few of the runs in it."""
    if any(folder.glob("*/seed-*/*/output.log")):
        return (
            f"the folder of a study, not of a run: tgm-scale study --config FILE run.dir={folder} --tables shows it, "
            f"and its runs are {folder}/ARM/seed-N/pretrain"
        )
    if (folder / "owner").is_dir() and not any((folder / name).exists() for name in FILES):
        return "a start in it is being prepared, or was ended before its first step: look again, or start it again"
    runs = sorted(file.parent.name for file in folder.glob("*/metrics.jsonl"))
    inside = f"; runs in it: {', '.join(runs[:_RUNS_NAMED])}{', ...' * (len(runs) > _RUNS_NAMED)}" if runs else ""
    return f"not a run folder{inside}"


def misplaced(folder: Path) -> list[str]:
    """Return names of a run's files that are not files, and of its folders that are not folders: writing to a pipe
    would wait for its reader forever, and writing to a dangling link would create a file elsewhere."""
    files = [name for name in FILES if os.path.lexists(folder / name) and not (folder / name).is_file()]
    return files + [name for name in FOLDERS if os.path.lexists(folder / name) and not (folder / name).is_dir()]


def probe() -> str:
    """Return the name of a file for testing whether a folder can be written."""
    return f".probe-{platform.node()}-{os.getpid()}"


@contextmanager
def owned(folder: Path, collectives: HostCollectives) -> Iterator[None]:
    """Own the run folder within this context, by the main process. Collective. A failure within it is recorded as an
    event.

    Raises ValueError on every rank where another start owns it."""
    refusal: Exception | None = None
    with ExitStack() as stack:
        if collectives.process.is_main:
            try:
                stack.enter_context(ownership.owned(folder))
            except (ValueError, OSError) as error:
                refusal = error
        if refusal := collectives.broadcast(refusal):
            raise refusal
        try:
            yield
        except Exception as error:
            if collectives.process.is_main:
                with suppress(OSError):  # a full or lost disk, which is reported on the terminal
                    why = " ".join(without_secrets(f"{error}" or type(error).__name__).split())
                    events.append(folder, FAILED, why=why[:_WHY], starts=_lines(folder / "environment.jsonl"))
            raise


def failure(folder: Path) -> str:
    """Return why the newest start failed; "" if it did not, or left no reason."""
    starts = _lines(folder / "environment.jsonl")
    failed = [event for event in events.read(folder) if event["event"] == FAILED and event.get("starts") == starts]
    return str(failed[-1].get("why")) if failed else ""


def _lines(file: Path) -> int:
    return len(file.read_bytes().splitlines()) if file.is_file() else 0


_WEIGHTS = ("objective.terms", "objective.reconstruction_weight", "objective.contrastive_weight")


def _other_terms(before: RunSettings, config: RunSettings) -> list[str]:
    """Return how the terms of two objectives differ, whichever keys set them."""
    found = [one.objective for one in (before, config) if isinstance(one, configuration.Config)]
    if len(found) < 2 or found[0].weights() == found[1].weights():
        return []
    return [f"objective: {found[0].in_words()} there, {found[1].in_words()} here"]


def _refuse_other_run(config: RunSettings, file: Path) -> None:
    if differing := differences(config):
        raise ValueError(
            f"run.dir={file.parent}: holds a run of another configuration by its config.yaml "
            f"({'; '.join(differing)}): set run.dir to a new folder{_onward(config, file.parent, differing)}, or give "
            "the same values to resume this one"
        )


def _onward(config: RunSettings, folder: Path, differing: list[str]) -> str:
    """Return how to continue training from these weights, where only the length differs."""
    length = all(line.startswith(("train.steps:", "train.epochs:")) for line in differing)
    if not length or not isinstance(config, configuration.Config) or not folders.steps_in(folder / "checkpoints"):
        return ""
    return f" (there, train.init_from={folder} goes on from these weights, with rates of its own)"


def differences(config: RunSettings) -> list[str]:
    """Return the differences, by key with both values, that keep a configuration from resuming the run in its folder;
    none where there is no run. Raises ValueError for a config.yaml that is unreadable or of another command."""
    file = Path(config.run.dir) / "config.yaml"
    if not file.is_file():
        return []
    before = configuration.checked(configuration.read_tree(file), str(file), type(config))
    there, here = (tree_without_secrets(configuration.digest_tree(one)) for one in (before, config))
    there = configuration.comparable(there, here)
    differing = [
        f"{section}.{key}: {there[section].get(key)!r} there, {values.get(key)!r} here"
        for section, values in here.items()
        for key in {**values, **there[section]}
        if there[section].get(key) != values.get(key) and f"{section}.{key}" not in (*origins.KEYS, *_WEIGHTS)
    ]
    differing += _other_terms(before, config)
    return differing + origins.differences(there, here, origins.read(file.parent))


def to_yaml(config: configuration.Section) -> str:
    """Return a configuration as YAML, without secrets in its URLs."""
    return configuration.to_yaml(tree_without_secrets(config.model_dump(mode="json")))


def write_evaluation(folder: Path, config: RunSettings) -> None:
    """Write configuration and origins of an evaluation, so that it is recognised where its encoder was moved."""
    if read := origins.updated(config.model_dump(mode="json"), origins.read(folder), 0):
        replace_file(folder / origins.FILE, json.dumps(read, indent=1))
    replace_file(folder / "config.yaml", to_yaml(config))


def write_start(
    folder: Path, config: RunSettings, corpora: list[dict[str, Any]], plan: dict[str, Any], step: int
) -> None:
    """Write the files that describe this start. Raises ValueError where the data differ from those of the run so
    far."""
    run_data.refuse_other(folder, corpora)
    read = origins.updated(config.model_dump(mode="json"), origins.read(folder), step)
    texts = {
        "config.yaml": to_yaml(config),
        run_data.FILE: json.dumps(tree_without_secrets(corpora), indent=1),
        origins.FILE: json.dumps(tree_without_secrets(read), indent=1),
        "plan.json": json.dumps(plan, indent=1),
    }
    for name, text in texts.items():
        replace_file(folder / name, text)
    files = {name: _digest(text.encode()) for name, text in texts.items()}
    with (folder / "environment.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(environment.of_this_start() | {"step": step, "files": files}) + "\n")


def changed(folder: Path) -> list[str]:
    """Return the files that differ from those the last start wrote, as far as known: earlier versions did not record
    them."""
    odd = misplaced(folder)  # reading a pipe would wait
    try:
        files = {} if "environment.jsonl" in odd else starts(folder)[-1]["files"]
        return [name for name in sorted(files.keys() - odd) if files[name] != _digest((folder / name).read_bytes())]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []  # missing files, or other things in their place, are reported elsewhere


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class _Plan(BaseModel):
    steps: int = Field(ge=1)
    world_size: int = Field(ge=1)


class _Start(BaseModel):
    model_config = ConfigDict(strict=True)
    step: int = Field(ge=0)
    slurm_job: str | None = None
    slurm_nodes: str | None = None


def read_plan(folder: Path) -> dict[str, Any]:
    """Return the contents of RUN/plan.json. Raises ValueError where it is damaged."""
    file = folder / "plan.json"
    found = json_object(file)
    refuse_damaged(_Plan, found, file, "the next start writes it again")
    return found


def starts(folder: Path) -> list[dict[str, Any]]:
    """Return the environment of each start of the run, oldest first. Raises ValueError that names a damaged line."""
    file = folder / "environment.jsonl"
    if not file.is_file():
        raise ValueError(f"{file}: missing: restore it; the next start begins another")
    found = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            start = json_of(line)
            _Start.model_validate(start)
        except ValueError:
            raise ValueError(f"{file}: line {number} is damaged: remove that line") from None
        found.append(start)
    return found
