"""`tgm-scale knn`, `probe` and `retrieve`: a checkpoint's frozen features evaluated. One process or many, same digits.

Shapes: N training clips, M test clips, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tgm_scale.data.lists.reading import Role
from tgm_scale.data.shards.inventory import LEFT_OUT, refuse_above, write_left_out
from tgm_scale.engine import build as engine
from tgm_scale.evaluation import attentive, epic, knn, probe, results
from tgm_scale.evaluation.classes import in_order, not_trained, one_class, ordered, told
from tgm_scale.evaluation.clips import PATIENCE, own_samples
from tgm_scale.evaluation.features import Clips, FrozenEncoder, Pooling, cached
from tgm_scale.evaluation.labelled import Labelled, in_both, of_labelled, open_labelled
from tgm_scale.evaluation.settings import FrozenConfig, LabelledConfig
from tgm_scale.evaluation.views import Decoding
from tgm_scale.models.vit import SIZES
from tgm_scale.runs import run_folder
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo, find_process, refuse_hidden_gpus
from tgm_scale.runtime.progress import ProgressBars


class Session(NamedTuple):
    """An evaluation under way: its folder, this process among its processes."""

    config: FrozenConfig
    folder: Path
    process: ProcessInfo
    collectives: HostCollectives
    encoder: FrozenEncoder


class Scored(NamedTuple):
    """Scores of test clips, whatever they mean: higher is likelier."""

    scores_MC: Tensor
    facts: dict[str, Any]


PARTS: tuple[Role, ...] = ("train", "test")
Fit = Callable[[Clips, Tensor, Clips], Scored]  # training clips, their class numbers, test clips
Check = Callable[[FrozenEncoder, list[str]], None]  # of the encoder and the labels, before features are made


@contextmanager
def session(config: FrozenConfig) -> Iterator[Session]:
    """Claims the run folder, joins the processes, loads the encoder."""
    process = find_process()
    refuse_hidden_gpus(process)
    folder = run_folder.claim(config)
    if process.world_size > 1:
        engine.start_processes(process)
    collectives = HostCollectives(process, PATIENCE)
    with run_folder.owned(folder, collectives):
        yield Session(config, folder, process, collectives, _encoder(config, process))
        if process.world_size > 1:
            engine.stop_processes()


def _encoder(config: FrozenConfig, process: ProcessInfo) -> FrozenEncoder:
    settings = config.encoder
    if settings.checkpoint == "random":
        if process.is_main and "size" not in settings.model_fields_set:
            print(f"encoder.checkpoint=random: of size {settings.size}; encoder.size={{tiny,S,B,L,H,g}} sets another")
        return FrozenEncoder.random(
            settings.size, settings.frames, settings.image_size, config.run.seed, process.device
        )
    given = {key: getattr(settings, key) for key in ("frames", "image_size") if key in settings.model_fields_set}
    found = FrozenEncoder.load(settings.checkpoint, process.device, **given)
    width = SIZES[settings.size].width
    if "size" in settings.model_fields_set and width != found.size.width:
        raise ValueError(
            f"encoder.size={settings.size}: {settings.checkpoint} is of an encoder of width {found.size.width}; leave "
            "the key out: it is of encoder.checkpoint=random alone"
        )
    return found


def open_split(data: LabelledConfig, role: Role) -> Labelled:
    """The training or test part. Raises ValueError."""
    spec = data.train if role == "train" else data.test
    if spec is None:
        raise ValueError("data.train: missing; give labelled shards or a list file")
    return open_labelled(spec, data.label, role=role, root=data.root, split=data.split)


def introduce(at: Session, sources: Mapping[Any, Labelled]) -> dict[str, Any]:
    """Print what was opened and left out; RUN/left_out.jsonl names all of it. Returns it for results.json.

    Raises ValueError where more than data.max_left_out_share is left out."""
    found = [of_labelled(part, source, LEFT_OUT) for part, source in sources.items()]
    if at.process.is_main and not (at.folder / "results.json").exists():  # which has one of its own
        write_left_out(at.folder / LEFT_OUT, ((part, source.problems) for part, source in sources.items()))
    refuse_above(found, at.config.data.max_left_out_share)
    shared = in_both(*sources.values()) if len(sources) == 2 else ""
    if at.process.is_main:
        for inventory in found:
            print("\n".join(inventory.lines()), flush=True)
        if shared:
            print(f"warning: {shared}", flush=True)
    positions = results.told_positions(at.encoder.positions, at.encoder.frames, at.encoder.image_size)
    if at.process.is_main:
        print(
            "\n".join(f"positions: {text}" for text in positions.values()), end="\n" if positions else "", flush=True
        )
    data = {"data": [inventory.facts() for inventory in found], **positions}
    return {**data, **({"in both parts": shared} if shared else {})}


def features(at: Session, source: Labelled, pooling: Pooling, name: str, bars: ProgressBars) -> Clips:
    """Cached features of a part, below the run folder. Collective."""
    if at.process.is_main:  # not before checkpoint and data are found: a mistake must not stamp the folder
        run_folder.replace_file(at.folder / "config.yaml", run_folder.shown(at.config))
    data, encoder = at.config.data, at.encoder
    views = encoder.views(
        stride=data.stride or encoder.stride,
        sampling=data.sampling,
        temporal=at.config.encoder.temporal_views,
        spatial=at.config.encoder.spatial_views,
    )
    task = bars.task(f"features of {name}", own_samples(source.refs, at.process.rank, at.process.world_size))
    decoding = Decoding(views, data.workers, task.advance)
    return cached(at.folder / "features", encoder, source, decoding, pooling, at.collectives)


def run_knn(config: FrozenConfig) -> dict[str, Any]:
    """Nearest neighbours. Raises ValueError for what cannot be read or evaluated."""
    settings = config.neighbours

    def fit(train: Clips, labels_N: Tensor, test: Clips) -> Scored:
        votes = knn.votes(
            train.features[0], labels_N, test.features[0], settings.k, settings.temperature, find_process().device
        )
        return Scored(votes, {"k": settings.k, "temperature": settings.temperature})

    def check(encoder: FrozenEncoder, labels: list[str]) -> None:
        if settings.k > len(labels) and find_process().is_main:
            print(
                f"warning: neighbours.k={settings.k}: only {len(labels)} training clips: all of them vote", flush=True
            )

    return _classify(config, "nearest neighbours", "mean", fit, check)


def run_probe(config: FrozenConfig) -> dict[str, Any]:
    """Linear or attentive probe. Raises ValueError for what cannot be read or evaluated."""
    settings, seed = config.probe, config.run.seed

    def linear(train: Clips, labels_N: Tensor, test: Clips) -> Scored:
        found = probe.probe(train.features[0], labels_N, test.features[0], seed, find_process().device)
        facts: dict[str, Any] = {"penalty": found.penalty, "validation accuracy": found.validation_accuracy}
        if found.at_edge:
            facts["penalty at the edge"] = "the best of all that were tried is the last: a further one may be better"
        return Scored(found.scores_MC, facts)

    def attend(train: Clips, labels_N: Tensor, test: Clips) -> Scored:
        found = attentive.probe(train.features[0], labels_N, test.features[0], settings, seed, find_process().device)
        sweep = {f"{rate:g}": value for rate, value in found.validation_accuracies.items()}
        return Scored(found.scores_MC, {"learning rate": found.learning_rate, "validation accuracies": sweep})

    def check(encoder: FrozenEncoder, labels: list[str]) -> None:
        probe.refuse_too_few(len(set(labels)), len(labels))
        if settings.head == "attentive":
            attentive.refuse_heads(settings.heads, encoder.size.width)

    if settings.head == "attentive":
        return _classify(config, "attentive probe", "tokens", attend, check)
    return _classify(config, "linear probe", "mean", linear, check)


_POOLINGS = {
    "mean": "mean of all tokens after the encoder's last norm",
    "tokens": "all tokens after the encoder's last norm",
}


def _classify(config: FrozenConfig, method: str, pooling: Pooling, fit: Fit, check: Check) -> dict[str, Any]:
    with session(config) as at, ProgressBars() as bars:
        sources = {role: open_split(config.data, role) for role in PARTS}
        classes = ordered(sources["train"].labels.values(), config.data.classes)
        lacking = not_trained(sources["train"].given, sources["test"].given)
        opened = introduce(at, sources)
        if (note := one_class(classes)) and at.process.is_main:
            print(f"warning: {note}", flush=True)
        check(at.encoder, [sources["train"].labels[ref.name] for ref in sources["train"].refs])
        train, test = (features(at, source, pooling, role, bars) for role, source in sources.items())
        found: dict[str, Any] = {}
        if at.process.is_main:
            truth_M, labels_N = (results.class_numbers(classes, clips.labels) for clips in (test, train))
            scored = fit(train, labels_N, test)
            facts = {
                "classes": len(classes),
                "training clips": len(train.labels),
                **results.said(told(lacking, len(test.labels))),
                "features": _POOLINGS[pooling],
                **scored.facts,
            }
            figures = results.classification_metrics(scored.scores_MC, truth_M, test.labels)
            try:
                figures |= _verb_and_noun(config, method, fit, train, test)
            except ValueError as reason:
                facts["verb and noun"] = f"not judged each for itself: {reason}"
            found = {
                "method": method,
                "checkpoint": config.encoder.checkpoint,
                "figures": figures,
                "facts": facts,
            }
            predicted = scored.scores_MC.argmax(1).tolist()
            rows = (
                {"key": key, "label": label, "prediction": classes[number]}
                for key, label, number in zip(test.keys, test.labels, predicted)
            )
            problems = {"train": train.problems, "test": test.problems}
            found = results.write(at.folder, found | opened, rows, problems)
            print(results.summary(found, at.folder), flush=True)
        at.collectives.barrier()
    return found


def _verb_and_noun(config: FrozenConfig, method: str, fit: Fit, train: Clips, test: Clips) -> dict[str, Any]:
    """EPIC's action by verb and noun, of probes, whose scores are logarithms of probabilities up to a constant.

    Raises ValueError where a probe of either cannot be fitted, such as of one verb."""
    if config.data.label != "action" or "probe" not in method or not epic.are_actions([*train.labels, *test.labels]):
        return {}
    return epic.by_verb_and_noun(lambda numbers: fit(train, numbers, test).scores_MC, train.labels, test.labels)


def is_right(
    scores: Callable[[Tensor, Tensor, Tensor], Tensor], train: Clips, test: Clips, encoder: int = 0
) -> Tensor:
    """Which test clips get their own label, bool [M], from the features of one of the encoders. Of classes with equal
    scores the lowest number wins."""
    classes = in_order(train.labels)
    truth_M, labels_N = (results.class_numbers(classes, clips.labels) for clips in (test, train))
    return scores(train.features[encoder], labels_N, test.features[encoder]).argmax(1) == truth_M
