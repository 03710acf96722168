"""`tgm-scale knn`, `probe` and `retrieve`: evaluation of a checkpoint's frozen features.

The results are the same to the last digit for any number of processes.  Shapes: N training clips, M test clips, C
classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from tgm_scale.data.lists.selection import Role
from tgm_scale.evaluation import attentive, baselines, epic, knn, probe, results
from tgm_scale.evaluation.cache import Clips
from tgm_scale.evaluation.classes import in_order, ordered, untrained_classes, untrained_note
from tgm_scale.evaluation.features import FrozenEncoder, Pooling, row_model
from tgm_scale.evaluation.first_look import short_note
from tgm_scale.evaluation.labelled import LabelledCorpus, written_notes
from tgm_scale.evaluation.session import PARTS, Session, decoding_of, features, open_split, report_data, session
from tgm_scale.evaluation.settings import FrozenConfig, ProbeConfig
from tgm_scale.evaluation.unused import tell_unused
from tgm_scale.models.vit import ModelSize
from tgm_scale.runtime.distributed import find_process
from tgm_scale.runtime.progress import ProgressBars


class Scored(NamedTuple):
    """Class scores of the test clips in any unit; a higher score is a likelier class."""

    scores_MC: Tensor
    facts: dict[str, Any]


Fit = Callable[[Clips, Tensor, Clips], Scored]  # training clips, their class numbers, test clips
Check = Callable[[FrozenEncoder, list[str]], None]  # called with encoder and labels before features are computed


@dataclass(frozen=True)
class Method:
    """A classifier on frozen features."""

    name: str
    pooling: Pooling
    fit: Fit
    check: Check
    is_probe: bool


def run_knn(config: FrozenConfig) -> dict[str, Any]:
    """Evaluate by nearest neighbours. Raises ValueError for a checkpoint or data that cannot be used."""
    settings = config.neighbours

    def fit(train: Clips, labels_N: Tensor, test: Clips) -> Scored:
        votes = knn.votes(
            train.features[0], labels_N, test.features[0], settings.k, settings.temperature, find_process().device
        )
        return Scored(votes, {"k": settings.k, "temperature": settings.temperature})

    def check(encoder: FrozenEncoder, labels: list[str]) -> None:
        most = max(Counter(labels).values())
        if settings.k > most and find_process().is_main:
            them = f"{len(labels)} training clips, {most} at most of a class"
            vote = "all of them vote" if settings.k > len(labels) else "clips of others always vote: try a smaller k"
            print(f"warning: neighbours.k={settings.k}: {them}: {vote}", flush=True)

    return _classify(config, Method("nearest neighbours", "mean", fit, check, is_probe=False))


def run_probe(config: FrozenConfig) -> dict[str, Any]:
    """Evaluate by a linear or attentive probe. Raises ValueError for a checkpoint or data that cannot be used."""
    settings, seed = config.probe, config.run.seed

    def linear(train: Clips, labels_N: Tensor, test: Clips) -> Scored:
        validation = probe.Validation(seed, train.groups)
        found = probe.probe(train.features[0], labels_N, test.features[0], validation, find_process().device)
        facts: dict[str, Any] = {
            "penalty": found.penalty,
            "validation accuracy": found.validation_accuracy,
            "validation": validation.described(),
        }
        if found.at_edge:
            facts["penalty at the edge"] = "the best of all that were tried is the last: a further one may be better"
        return Scored(found.scores_MC, facts)

    def attend(train: Clips, labels_N: Tensor, test: Clips) -> Scored:
        validation = probe.Validation(seed, train.groups)
        found = attentive.probe(
            train.features[0], labels_N, test.features[0], settings, validation, find_process().device
        )
        facts: dict[str, Any] = {
            "learning rate": found.learning_rate,
            "validation accuracies": {f"{rate:g}": found.validation_accuracies[rate] for rate in found.tried},
            "validation": validation.described(),
        }
        if found.at_edge:
            facts["learning rate at the edge"] = "the best of all that were tried is the last: try further ones"
        return Scored(found.scores_MC, facts)

    def check(encoder: FrozenEncoder, labels: list[str]) -> None:
        probe.refuse_too_few(len(set(labels)), len(labels), config.data.share)
        refuse_reading(settings, encoder.size, encoder.image_size)

    if settings.head == "attentive":
        return _classify(config, Method("attentive probe", "tokens", attend, check, is_probe=True))
    return _classify(config, Method("linear probe", settings.pool, linear, check, is_probe=True))


def refuse_reading(settings: ProbeConfig, size: ModelSize, image_size: int) -> None:
    """Raise ValueError if the probe cannot read the tokens of an encoder of this size."""
    if settings.head == "attentive":
        attentive.refuse_heads(settings.heads, size.width)
    across = image_size // size.patch
    if settings.pool != "mean" and int(settings.pool[0]) > across:
        raise ValueError(
            f"probe.pool={settings.pool}: clips of {image_size} pixels have {across} x {across} tokens in a slot of "
            "time, and a place wants one at least: take a smaller one"
        )


_POOLINGS = {
    "mean": "mean of all tokens after the encoder's last norm",
    "2x2": "means of the tokens of 2 x 2 places in each slot of time, after the encoder's last norm",
    "4x4": "means of the tokens of 4 x 4 places in each slot of time, after the encoder's last norm",
    "tokens": "all tokens after the encoder's last norm",
}


def _classify(config: FrozenConfig, method: Method) -> dict[str, Any]:
    with session(config) as at, ProgressBars() as bars:
        if at.process.is_main:
            tell_unused(config, "probe" if method.is_probe else "neighbours")
        data = _open(at)
        method.check(at.encoder, [data.train.labels[ref.name] for ref in data.train.refs])
        compares = config.probe.baselines and method.is_probe
        if compares:
            baselines.refuse("probe.baselines", data.train.sample_labels, config.data.share)
        train, test = (features(at, source, method.pooling, role, bars) for role, source in data.sources.items())
        measured = _measure_baselines(at, data, method, bars) if compares else {}
        found = _score(at, data, method, train, test, measured) if at.process.is_main else {}
        at.collectives.barrier()
    return found


class _Opened(NamedTuple):
    """Labelled corpora of an evaluation, and the notes that go into its results."""

    sources: dict[Role, LabelledCorpus]  # train and test
    classes: list[str]
    lacking: dict[str, int]  # test clips of each class that no training clip has
    notes: list[str]
    metadata: dict[str, Any]

    @property
    def train(self) -> LabelledCorpus:
        return self.sources["train"]

    @property
    def test(self) -> LabelledCorpus:
        return self.sources["test"]


def _open(at: Session) -> _Opened:
    """Open both corpora and print warnings. Collective."""
    config = at.config
    sources = {role: open_split(config.data, role, config.run.seed) for role in PARTS}
    classes = ordered(sources["train"].labels.values(), config.data.classes)
    lacking = untrained_classes(sources["train"].sample_labels, sources["test"].sample_labels)
    metadata = report_data(at, sources)
    notes = written_notes(classes, sources["train"], sources["test"])
    if at.process.is_main:
        views = decoding_of(at).views
        short = short_note([sources["test"].corpus], views.frames, views.stride, views.sampling, config.data.workers)
        notes += filter(None, [short])
        print("".join(f"warning: {note}\n" for note in notes), end="", flush=True)
    return _Opened(sources, classes, lacking, notes, metadata)


def _measure_baselines(
    at: Session, data: _Opened, method: Method, bars: ProgressBars
) -> dict[str, baselines.Measured]:
    """Measure the baselines of `probe.baselines`. Collective."""
    folder, seed = at.folder / "features", at.config.run.seed
    of = baselines.Comparison(folder, data.sources, decoding_of(at), at.collectives, seed, bars)
    return of.measure({**baselines.of_pixels(of), **_random_weights(at, of, method)}, data.classes)


def _score(
    at: Session, data: _Opened, method: Method, train: Clips, test: Clips, measured: dict[str, baselines.Measured]
) -> dict[str, Any]:
    """Fit, score the test clips and write the results. Main process only."""
    config, classes = at.config, data.classes
    truth_M, labels_N = (results.class_numbers(classes, clips.labels) for clips in (test, train))
    scored = method.fit(train, labels_N, test)
    facts = {
        "classes": len(classes),
        "training clips": len(train.labels),
        **results.optional_note(untrained_note(data.lacking, len(test.labels)), *data.notes),
        **results.baselines(scored.scores_MC, truth_M, test, train.labels),
        **results.cautions(scored.scores_MC, classes),
        "features": _POOLINGS[method.pooling],
        **scored.facts,
    }
    figures = results.classification_metrics(scored.scores_MC, truth_M, test.labels)
    try:
        figures |= _verb_and_noun(config, method, train, test)
    except ValueError as reason:
        facts["verb and noun"] = f"not evaluated separately: {reason}"
    found = {"method": method.name, "checkpoint": config.encoder.checkpoint, "figures": figures, "facts": facts}
    if measured:
        right_M = scored.scores_MC.argmax(1) == truth_M
        found["baselines"] = {name: one.beside(right_M, test.keys) for name, one in measured.items()}
    rows = results.predictions(test, classes, scored.scores_MC)
    problems = {"train": train.problems, "test": test.problems}
    found = results.write(at.folder, found | data.metadata, rows, problems)
    print(results.summary(found, at.folder), flush=True)
    return found


def _random_weights(at: Session, of: baselines.Comparison, method: Method) -> dict[str, baselines.Baseline]:
    """Return the same probe on this encoder's initial weights as a baseline; empty if the encoder is random already.

    The weights are those that a run of this seed starts from."""
    if at.config.encoder.checkpoint == "random":
        return {}
    rows = row_model(at.encoder.fresh(at.config.run.seed), method.pooling)
    what = f"{method.name} of the encoder's first values ({at.encoder.initialisation})"
    return {"random weights": baselines.Baseline(what, rows, lambda *of: method.fit(*of).scores_MC, of.decoding.views)}


def _verb_and_noun(config: FrozenConfig, method: Method, train: Clips, test: Clips) -> dict[str, Any]:
    """Return EPIC's action metrics from verb and noun; empty for other labels and for methods other than probes.

    Only probes qualify: their scores are log probabilities up to a constant. Raises ValueError if either probe cannot
    be fitted, for example to a single verb."""
    if config.data.label != "action" or not method.is_probe or not epic.are_actions([*train.labels, *test.labels]):
        return {}
    return epic.by_verb_and_noun(lambda numbers: method.fit(train, numbers, test).scores_MC, train.labels, test.labels)


def is_right(
    scores: Callable[[Tensor, Tensor, Tensor], Tensor], train: Clips, test: Clips, encoder: int = 0
) -> Tensor:
    """Return which test clips are classified correctly, bool [M], from the features of encoder number `encoder`.

    Of classes with equal scores the lowest number wins."""
    classes = in_order(train.labels)
    truth_M, labels_N = (results.class_numbers(classes, clips.labels) for clips in (test, train))
    return scores(train.features[encoder], labels_N, test.features[encoder]).argmax(1) == truth_M
