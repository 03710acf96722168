"""Model card (README.md) of an exported folder: the model, and its run according to the run's files.

No metric is computed here. Unknown facts are left out; paths are shortened to their last part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tgm_scale import config as configuration
from tgm_scale.assembly.objective import weights_of
from tgm_scale.assembly.run_plan import run_masker
from tgm_scale.assembly.towers import IMAGE_MAPS
from tgm_scale.checkpoints import folders
from tgm_scale.config.sections import Config, GuidanceConfig, Section
from tgm_scale.conversion.weights import Weights
from tgm_scale.objectives.term import CAPTIONS
from tgm_scale.objectives.terms import TERMS, needs_of
from tgm_scale.report.card_text import LICENCE, loading
from tgm_scale.runs import environment, run_data, run_folder, status
from tgm_scale.runs.figures import SHARED, shares
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.terminal import message

_RECIPE = ("data", "guidance", "masking", "model", "objective", "optim", "train", "finetune")
_NOT_A_RECIPE = {"workers", "shards", "root", "cache", "patience", "decoder", "train", "test", "micro_batch_size"}
_BESIDE = tuple("classes|majority class|over groups|few groups|predictions|few test clips|note".split("|"))  # facts
_FIGURES = ("loss", "loss_reconstruction", "loss_contrastive", "contrastive_accuracy")


@dataclass(frozen=True)
class Origin:
    """The run of an export: root: its folder; step: of the exported checkpoint."""

    root: Path
    step: int | None

    @classmethod
    def of(cls, given: str | Path) -> Origin | None:
        """Return the origin; None if `given` is neither a run of this project nor a checkpoint in one."""
        path = Path(given)
        root = path.parent.parent if (path / "manifest.json").is_file() else path
        if not (root / "config.yaml").is_file():
            return None
        found = path if path != root else folders.latest(root / "checkpoints")
        return cls(root, None if found is None else folders.step_of(found))


@dataclass(frozen=True)
class Export:
    """An export. name: of the folder; given: the source; raw: weights as trained although averaged ones exist; fresh:
    classes of an untrained head; kind: type of the run's configuration, whose defaults are not listed."""

    name: str
    given: str | Path
    raw: bool = False
    fresh: int = 0
    kind: type[BaseModel] = Config


def evaluations_of(export: Export, folders: Iterable[str], tree: dict[str, Any] | None) -> list[Path]:
    """Return the results files for the exported weights, in the run's own folder and in those of evaluations.

    tree: the run's configuration. Raises ValueError for a folder without results, and for results of another model or
    step."""
    origin = Origin.of(export.given)
    averaged = export.raw and bool(((tree or {}).get("finetune") or {}).get("ema"))
    found = []
    if origin is not None and not averaged:
        found = [
            file for file in status.result_files(origin.root) if _is_of(_known(partial(_judged, file), ""), origin)
        ]
    for folder in folders:
        files = status.result_files(Path(folder))
        if not files:
            raise ValueError(f"--evaluation {folder}: no results.json in it: wanted the run folder of an evaluation")
        if averaged:
            raise ValueError(f"--evaluation {folder}: of the averaged weights, not of those of --raw: leave one out")
        for file in files:
            judged = _judged(file)
            if origin is None or not _is_of(judged, origin):
                step = "" if origin is None or origin.step is None else f" (step {origin.step})"
                raise ValueError(f"--evaluation {folder}: {file.name} judges {judged}, not what is converted{step}")
        found += files
    return found


def _judged(file: Path) -> str:
    judged = json_object(file).get("checkpoint")
    return judged if isinstance(judged, str) else ""


def _is_of(judged: str, origin: Origin) -> bool:
    """Return whether a results file's checkpoint is the exported one. For a relative path its last parts decide, since
    the folder in which the evaluation was started is unknown."""
    path, root = Path(judged), origin.root.resolve()
    step = folders.step_of(path)
    if step is not None:
        path = path.parent.parent
    parts = path.resolve().parts if path.is_absolute() or path.is_dir() else path.parts
    same = bool(parts) and root.parts[-len(parts) :] == parts
    return same and (step is None or step == origin.step)


def card(export: Export, weights: Weights, evaluations: Iterable[str] = ()) -> str:
    """Return the Markdown of an export. weights: the weights that are written. Raises ValueError as
    `evaluations_of`."""
    origin, tree = Origin.of(export.given), weights.config or {}
    results = evaluations_of(export, evaluations, tree)
    parts = [_front(weights), f"# {_plain(export.name)}\n", *_what(export, origin, weights), loading(weights)]
    if origin is not None:
        parts += [*_data(origin), *_recipe(tree, export.kind), *_training(origin), *_results(results)]
    parts += ["## Licence\n", f"{LICENCE}\n", *_software(origin)]
    return "\n".join(parts)


def _front(weights: Weights) -> str:
    task = "pipeline_tag: video-classification\n" if weights.kind == "classifier" else ""
    return f"---\nlibrary_name: transformers\n{task}tags: [video, videomae, masked-autoencoder]\n---\n"


def _what(export: Export, origin: Origin | None, weights: Weights) -> Iterator[str]:
    size = weights.size
    what = "A video classifier" if weights.kind == "classifier" else "A masked video autoencoder"
    count = sum(value.numel() for value in weights.state.values())
    yield (
        f"{what} in the form of transformers' VideoMAE: {count:,} parameters; an encoder of {size.depth} blocks, "
        f"{size.width} wide with {size.heads} heads; clips of {weights.frames} frames of {weights.image_size} x "
        f"{weights.image_size} pixels in tokens of {size.tubelet} x {size.patch} x {size.patch}.\n"
    )
    if export.fresh:
        yield f"The head of {export.fresh} classes has not been trained.\n"
    if origin is not None and origin.step is not None:
        run, weighed = _code(origin.root.resolve().name), " (weights as trained, not averaged)" if export.raw else ""
        yield f"Trained with tgm_scale: the checkpoint of step {origin.step} of the run {run}{weighed}.\n"
    elif origin is None:
        yield f"Converted by tgm_scale from {_code(Path(export.given).name)}.\n"


def _data(origin: Origin) -> Iterator[str]:
    corpora = _known(lambda: run_data.read(origin.root), [])
    if not corpora:
        return
    yield "## Data\n"
    yield from _table(
        ("corpus", "samples"),
        ((_named(one), f"{one['samples']:,}" if one.get("samples") else "") for one in corpora),
    )


def _named(corpus: dict[str, Any]) -> str:
    part = corpus.get("part")  # of a finetuning: train or test
    return f"{corpus['name']} ({part})" if part else str(corpus["name"])


def _recipe(tree: dict[str, Any], kind: type[BaseModel]) -> Iterator[str]:
    of_pretraining = _known(partial(_pretraining, tree), None) if kind is Config else None
    always, left_out = of_pretraining or ({}, set())
    others = {key: _shown(value) for key, value in _differences(tree, kind) if key not in left_out}
    if rows := {**always, **others}:
        yield "## Recipe\n"
        beside = "The mask, the objective, and keys" if always else "Keys"
        yield f"{beside} of the configuration that are not at their default:\n"
        yield from _table(("key", "value"), rows.items())


def _pretraining(tree: dict[str, Any]) -> tuple[dict[str, str], set[str]]:
    """Return the facts listed for every pretraining, by key, and the keys to leave out.

    Left out are keys that repeat these facts, and those of frozen models that neither mask nor objective uses. Raises
    ValueError for an invalid configuration."""
    config = configuration.checked(tree, "config.yaml", Config)
    masker = run_masker(config)
    weights = weights_of(config.objective, masker)
    always = {
        "masking.recipe": config.masking.recipe,
        "masking.mask_ratio": f"{config.masking.mask_ratio:g}",
        "objective": " + ".join(f"{weights[name]:g} {name}" for name in TERMS if name in weights),
    }
    said = {*always, "objective.terms", "objective.reconstruction_weight", "objective.contrastive_weight"}
    needs = masker.needs | needs_of(weights)
    unused = set() if needs & (IMAGE_MAPS | {CAPTIONS}) else set(GuidanceConfig.model_fields) - {"flow"}
    unused |= set() if "flow" in needs else {"flow"}
    return always, said | {f"guidance.{key}" for key in unused}


def _differences(tree: dict[str, Any], kind: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name in _RECIPE:
        section = tree.get(name)
        fields = kind.model_fields[name].annotation if name in kind.model_fields else None
        known = fields.model_fields if isinstance(fields, type) and issubclass(fields, Section) else {}
        for key, value in section.items() if isinstance(section, dict) else ():
            if key in _NOT_A_RECIPE or (name, key) == ("data", "synthetic"):
                continue
            default = known[key].get_default(call_default_factory=True) if key in known else None
            if value != (list(default) if isinstance(default, tuple) else default):
                yield f"{name}.{key}", value


def _shown(value: Any) -> str:
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)


def _training(origin: Origin) -> Iterator[str]:
    plan = _known(lambda: run_folder.read_plan(origin.root), {})
    rows = [row for row in _known(lambda: read_metrics(origin.root), []) if row["step"] <= (origin.step or 0)]
    last = rows[-1] if rows and rows[-1]["step"] == origin.step else {}
    facts = {"steps made": origin.step, "steps of the run": plan.get("steps"), "precision": plan.get("precision")}
    if isinstance(seen := last.get("samples"), int):
        facts |= {"samples seen": f"{seen:,}", "epochs": _epochs(origin, seen)}
    if known := [one for one in facts.items() if one[1] is not None]:
        yield "## Training\n"
        yield from _table(("what", "figure"), known)
    measured = [(name, last, last.get(name)) for name in _FIGURES]
    looked = [row for row in rows if isinstance(row.get("knn_accuracy"), float)]
    measured += [("knn_accuracy", row, row["knn_accuracy"]) for row in looked[-1:]]
    told = [(name, f"{x:.4f}", f"metrics.jsonl, step {row['step']}") for name, row, x in measured if type(x) is float]
    if told:
        yield from _table(("figure of the training", "value", "from"), told)


def _epochs(origin: Origin, seen: int) -> str | None:
    """Return passes over the data; None if it has several parts, or sizes are unknown."""
    corpora = _known(lambda: run_data.read(origin.root), [])
    counts = [one.get("samples") for one in corpora if "part" not in one]
    return f"{seen / sum(counts):.2f}" if counts and all(counts) and len(counts) == len(corpora) else None


def _results(files: list[Path]) -> Iterator[str]:
    rows: list[tuple[Any, ...]] = []
    beside: list[str] = []
    for file in files:
        found = _known(partial(json_object, file), {})
        place = f"{file.resolve().parent.name}/{file.name}"
        rows += [
            (found.get("method"), name, f"{value:.4f}", _interval(found["figures"][name]), place)
            for name, value in _known(partial(shares, found), {}).items()
        ]
        beside += [f"- {_plain(place)}: {'; '.join(said)}" for said in [list(_beside(found))] if said]
    if rows:
        yield "## Evaluation\n"
        if any(row[0] != "finetuning" for row in rows):
            yield "Neighbours, probes and retrieval are of the encoder alone; their heads are not in this folder.\n"
        yield from _table(("method", "figure", "value", "95 % interval", "from"), rows)
        yield "\n".join(beside) + "\n" * bool(beside)


def _interval(figure: dict[str, Any]) -> str:
    what = "captions" if "captions" in figure else "clips"
    low, high, many = (figure.get(key) for key in ("low", "high", what))
    known = type(low) is float and type(high) is float and type(many) is int
    return f"{low:.4f} to {high:.4f}, over {many:,} {what}" if known else ""


def _beside(results: dict[str, Any]) -> Iterator[str]:
    """Yield the data of the results, and what to compare them with."""
    parts = results.get("data")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and isinstance(name := part.get("name"), str) and name:
            yield f"{part.get('part')} {_plain(_shown(name))}, {part.get('usable')} clips"
    facts = results.get("facts")
    known = facts if isinstance(facts, dict) else {}
    yield from (_plain(f"{name}: {known[name]}") for name in _BESIDE if name in known)
    if isinstance(shared := results.get(SHARED), str):
        yield _plain(f"{SHARED}: {shared}")


def _software(origin: Origin | None) -> Iterator[str]:
    starts = _known(lambda: run_folder.starts(origin.root), []) if origin is not None else []
    packages = starts[-1].get("packages") if starts else None
    of_run = isinstance(packages, dict)
    versions: Any = packages if of_run else environment.versions()
    yield "## Software\n"
    yield f"Versions of the {'last start of the run' if of_run else 'conversion'}:\n"
    yield from _table(("package", "version"), ((name, value) for name, value in versions.items() if value))


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (header, ["---"] * len(header), *rows)) + "\n"


def _cell(value: Any) -> str:
    return " ".join(_plain(str(value)).replace("|", "\\|").split())


def _plain(text: str) -> str:
    """Return the text escaped, so that Markdown shows it literally."""
    return re.sub(r"([\\`*\[\]<>])", r"\\\1", message(text))


def _code(text: str) -> str:
    return f"`{message(text).replace('`', chr(39))}`"


def _known(read: Callable[[], Any], nothing: Any) -> Any:
    """Return what a file states; `nothing` if it is missing or damaged."""
    try:
        return read()
    except (ValueError, OSError):
        return nothing
