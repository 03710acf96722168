"""`tgm-scale knn`, `probe` and `retrieve`: a checkpoint's frozen features judged. One process or many, same digits.

Shapes: N training clips, M test clips, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tgm_scale import config as configuration
from tgm_scale.evaluation import attentive, knn, probe, results
from tgm_scale.evaluation.clips import own_samples
from tgm_scale.evaluation.features import Clips, FrozenEncoder, Pooling, cached
from tgm_scale.evaluation.labelled import Labelled, open_labelled
from tgm_scale.evaluation.settings import FrozenConfig, LabelledConfig
from tgm_scale.runtime.distributed import Control, Place, find_place
from tgm_scale.runtime.progress import Board
from tgm_scale.training import engine, run_folder


class Session(NamedTuple):
    """An evaluation under way: its folder, this process among its processes."""

    config: FrozenConfig
    folder: Path
    place: Place
    control: Control
    encoder: FrozenEncoder


class Scored(NamedTuple):
    """Scores of test clips, whatever they mean: higher is likelier."""

    scores_MC: Tensor
    facts: dict[str, Any]


Judge = Callable[[Clips, Tensor, Clips], Scored]  # training clips, their class numbers, test clips


@contextmanager
def session(config: FrozenConfig) -> Iterator[Session]:
    """Claims the run folder, joins the processes, loads the encoder."""
    place = find_place()
    folder = run_folder.claim(config)
    if place.world_size > 1:
        engine.start_processes(place)
    control = Control(place)
    yield Session(config, folder, place, control, FrozenEncoder.load(config.encoder.checkpoint, place.device))
    if place.world_size > 1:
        engine.stop_processes()


def open_split(data: LabelledConfig, role: str) -> Labelled:
    """The training or test part. Raises ValueError."""
    spec = data.train if role == "train" else data.test
    if spec is None:
        raise ValueError("data.train: missing; give labelled shards or a list file")
    return open_labelled(spec, data.label, role=role, root=data.root, split=data.split)


def features(at: Session, source: Labelled, pooling: Pooling, name: str, board: Board) -> Clips:
    """Cached features of a part, below the run folder. Collective."""
    if at.place.is_main:  # not before checkpoint and data are found: a mistake must not stamp the folder
        run_folder.replace_file(at.folder / "config.yaml", configuration.dump(at.config))
    data, encoder = at.config.data, at.encoder
    views = encoder.views(
        stride=data.stride or encoder.stride,
        sampling=data.sampling,
        temporal=at.config.encoder.temporal_views,
        spatial=at.config.encoder.spatial_views,
    )
    task = board.task(f"features of {name}", own_samples(source.refs, at.place.rank, at.place.world_size))
    return cached(
        at.folder / "features",
        encoder,
        source,
        views,
        pooling,
        at.control,
        workers=data.workers,
        progress=task.advance,
    )


def run_knn(config: FrozenConfig) -> dict[str, Any]:
    """Nearest neighbours. Raises ValueError for what cannot be read or judged."""
    settings = config.neighbours

    def judge(train: Clips, labels_N: Tensor, test: Clips) -> Scored:
        votes = knn.votes(
            train.features[0], labels_N, test.features[0], settings.k, settings.temperature, find_place().device
        )
        return Scored(votes, {"k": settings.k, "temperature": settings.temperature})

    return _classify(config, "nearest neighbours", "mean", judge)


def run_probe(config: FrozenConfig) -> dict[str, Any]:
    """Linear or attentive probe. Raises ValueError for what cannot be read or judged."""
    settings, seed = config.probe, config.run.seed

    def linear(train: Clips, labels_N: Tensor, test: Clips) -> Scored:
        found = probe.probe(train.features[0], labels_N, test.features[0], seed, find_place().device)
        facts = {"penalty": found.penalty, "validation accuracy": found.validation_accuracy}
        return Scored(found.scores_MC, facts)

    def attend(train: Clips, labels_N: Tensor, test: Clips) -> Scored:
        found = attentive.probe(
            train.features[0],
            labels_N,
            test.features[0],
            heads=settings.heads,
            learning_rates=settings.learning_rates,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            weight_decay=settings.weight_decay,
            seed=seed,
            device=find_place().device,
        )
        sweep = {f"{rate:g}": value for rate, value in found.validation_accuracies.items()}
        return Scored(found.scores_MC, {"learning rate": found.learning_rate, "validation accuracies": sweep})

    if settings.head == "attentive":
        return _classify(config, "attentive probe", "tokens", attend)
    return _classify(config, "linear probe", "mean", linear)


_POOLINGS = {
    "mean": "mean of all tokens after the encoder's last norm",
    "tokens": "all tokens after the encoder's last norm",
}


def _classify(config: FrozenConfig, method: str, pooling: Pooling, judge: Judge) -> dict[str, Any]:
    with session(config) as at, Board() as board:
        sources = [open_split(config.data, role) for role in ("train", "test")]
        train, test = (features(at, s, pooling, n, board) for s, n in zip(sources, ("training", "test")))
        found: dict[str, Any] = {}
        if at.place.is_main:
            classes, truth_M = results.class_numbers(train.labels, test.labels)
            _, labels_N = results.class_numbers(train.labels, train.labels)
            scored = judge(train, labels_N, test)
            facts = {
                "classes": len(classes),
                "training clips": len(train.labels),
                "features": _POOLINGS[pooling],
                **scored.facts,
            }
            found = {
                "method": method,
                "checkpoint": config.encoder.checkpoint,
                "figures": results.judged(scored.scores_MC, truth_M),
                "facts": facts,
            }
            predicted = scored.scores_MC.argmax(1).tolist()
            rows = (
                {"key": key, "label": label, "prediction": classes[number]}
                for key, label, number in zip(test.keys, test.labels, predicted)
            )
            found = results.write(at.folder, found, rows, [*train.problems, *test.problems])
            print(results.summary(found), flush=True)
        at.control.barrier()
    return found


def is_right(judge: Callable[[Tensor, Tensor, Tensor], Tensor], train: Clips, test: Clips, encoder: int = 0) -> Tensor:
    """Which test clips get their own label, bool [M], from the features of one of the encoders."""
    _, labels_N = results.class_numbers(train.labels, train.labels)
    _, truth_M = results.class_numbers(train.labels, test.labels)
    return judge(train.features[encoder], labels_N, test.features[encoder]) == truth_M
