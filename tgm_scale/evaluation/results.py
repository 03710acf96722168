"""Output of an evaluation: RUN/results.json, RUN/predictions.jsonl, RUN/left_out.jsonl and a summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tgm_scale.contracts import Problem
from tgm_scale.data.lists.text import shown
from tgm_scale.evaluation.intervals import Interval, class_interval, group_interval, paired_interval
from tgm_scale.runs.environment import versions
from tgm_scale.runs.figures import compared_in_words, in_words
from tgm_scale.runtime.files import replace_file
from tgm_scale.runtime.outside.json_text import json_object

if TYPE_CHECKING:
    from tgm_scale.evaluation.cache import Clips

Clip = tuple[int, int]  # frames and side of a clip
FEW_GROUPS = 10  # a 95 % interval over 10 groups covers 91 % (tests/evaluation/test_intervals.py)
FEW = 30  # test clips: below this, one of them moves top-1 by more than 0.03


def class_numbers(classes: Sequence[str], labels: Sequence[str]) -> Tensor:
    """Return each label's number among the classes, int64 [M]; -1 for an unknown one, which no prediction matches."""
    number = {label: i for i, label in enumerate(classes)}
    return torch.tensor([number.get(label, -1) for label in labels])


def accuracy(right_M: Tensor, same_M: Tensor | None = None) -> dict[str, Any]:
    """Return the share of right answers with its bootstrap interval over the test clips.

    same_M: equal for answers to the same caption; the interval is then over captions, if these are fewer."""
    distinct = 0 if same_M is None else len(same_M.unique())
    if same_M is None or distinct == len(right_M):
        return _with_interval(paired_interval(right_M.double()[None]), right_M)
    found = group_interval(right_M, [str(number) for number in same_M.tolist()])
    return _with_interval(found, right_M) | {"captions": distinct}


def _with_interval(found: Interval, right_M: Tensor) -> dict[str, Any]:
    return {"value": found.mean, "low": found.low, "high": found.high, "clips": len(right_M)}


def classification_metrics(scores_MC: Tensor, truth_M: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Return top-1, mean class accuracy over the classes of the test clips, and top-5, with intervals.

    labels: of the M test clips; they separate classes that have no number. Raises ValueError for scores that are not
    finite."""
    refuse_not_finite(scores_MC)
    ranked = scores_MC.argsort(dim=1, descending=True, stable=True)
    right_M = ranked[:, 0] == truth_M
    found = {"top1": accuracy(right_M), "mean class": _class_accuracy(right_M, labels)}
    if scores_MC.shape[1] > 5:
        found["top5"] = accuracy((ranked[:, :5] == truth_M[:, None]).any(1))
    return found


def predictions(clips: Clips, classes: Sequence[str], scores_MC: Tensor) -> Iterator[dict[str, str]]:
    """Yield a row for each test clip: key, label, predicted class, and its group if all have one."""
    groups = clips.groups or [""] * len(clips.keys)
    for key, label, group, best in zip(clips.keys, clips.labels, groups, scores_MC.argmax(1).tolist()):
        yield {"key": key, "label": label, "prediction": classes[best], **({"group": group} if group else {})}


def baselines(scores_MC: Tensor, truth_M: Tensor, clips: Clips, trained: Sequence[str]) -> dict[str, str]:
    """Return references for top-1: the share of test clips of the most frequent training class, and group intervals.

    trained: the label of each training clip. If the test clips have groups, top-1's interval over these is added."""
    most = Counter(sorted(trained)).most_common(1)[0][0]
    share = clips.labels.count(most) / len(clips.labels)
    found = {"majority class": f"top1 of always answering {shown(most)}: {share:.4f}"}
    if clips.groups is not None and len(set(clips.groups)) > 1:
        of_groups = group_interval(scores_MC.argmax(1) == truth_M, clips.groups)
        found["over groups"] = (
            f"top1 [{of_groups.low:.4f}, {of_groups.high:.4f}] (95 %, bootstrap over {len(set(clips.groups))} groups)"
        )
        if len(set(clips.groups)) < FEW_GROUPS:
            found["few groups"] = few_groups(len(set(clips.groups)))
    return found


def compared(right_M: Tensor, clips: Clips, method: Mapping[str, bool]) -> dict[str, Any]:
    """Return a baseline's top-1 with its interval, and the method's gain over it.

    Intervals are over the groups of the test clips if they have some, else over the clips. method: whether the method
    is right, by the names of its clips."""
    top1 = accuracy(right_M)
    shared = [at for at, key in enumerate(clips.keys) if key in method]
    gain_M = torch.tensor([float(method[clips.keys[at]]) - float(right_M[at]) for at in shared], dtype=torch.float64)
    groups = clips.groups if clips.groups is not None and len(set(clips.groups)) > 1 else None
    if groups is None:
        return {"top1": top1, "gain": _with_interval(paired_interval(gain_M[None]), gain_M)}
    over, gain = group_interval(right_M, groups), group_interval(gain_M, [groups[at] for at in shared])
    number = {"groups": len(set(groups))}
    return {
        "top1": top1 | {"low": over.low, "high": over.high} | number,
        "gain": _with_interval(gain, gain_M) | number,
    }


def cautions(scores_MC: Tensor, classes: Sequence[str]) -> dict[str, str]:
    """Return warnings about metrics that tell little: all predictions are one class, or test clips are few."""
    clips, best = len(scores_MC), scores_MC.argmax(1).unique().tolist()
    found = {}
    if len(best) == 1 and len(classes) > 1:
        found["predictions"] = f"all are {shown(classes[best[0]])}: top1 is the share of the test clips with it"
    if clips < FEW:
        found["few test clips"] = few_clips(clips)
    return found


def few_clips(clips: int, figure: str = "top1") -> str:
    return (
        f"{clips}, fewer than {FEW}: one clip moves {figure} by {1 / clips:.4f}, and an interval over so few is rough"
    )


def few_groups(groups: int) -> str:
    return (
        f"{groups}, fewer than {FEW_GROUPS}: an interval over so few is too narrow (over 4 groups, one of 95 % covers "
        "about 80 %)"
    )


def refuse_not_finite(scores_MC: Tensor) -> None:
    """Raise ValueError for scores that are not finite."""
    if not scores_MC.isfinite().all():
        raise ValueError(
            "the scores of the test clips are not finite (is a temperature too small?): no figure is made"
        )


def _class_accuracy(right_M: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Return the share of right answers in each class, averaged over classes with equal weight."""
    class_M = class_numbers(sorted(set(labels)), labels)
    return _with_interval(class_interval(right_M, class_M), right_M)


def by_reason(problems: Iterable[Problem]) -> dict[str, int]:
    return dict(sorted(Counter(problem.reason for problem in problems).items()))


def optional_note(*texts: str) -> dict[str, str]:
    """Return the non-empty notes as one for the metadata; empty if there are none."""
    return {"note": text} if (text := "; ".join(filter(None, texts))) else {}


def interpolation_note(positions: Clip | None, frames: int, side: int) -> dict[str, str]:
    """Return a line for the log and results.json if positions are interpolated, else nothing."""
    if positions is None:
        return {}
    return {
        "positions": f"interpolated in space and time from clips of {positions[0]} frames of {positions[1]} pixels to "
        f"{frames} frames of {side}"
    }


def write(
    folder: Path,
    results: dict[str, Any],
    predictions: Iterable[dict[str, Any]],
    problems: Mapping[str, Sequence[Problem]],
) -> dict[str, Any]:
    """Write results.json, predictions.jsonl and left_out.jsonl, each atomically; return the results.

    problems: by part of the data. If the folder holds another method's results, these files get names of their own:
    results-METHOD.json, and so on."""
    every = [problem for of_part in problems.values() for problem in of_part]
    results = {**results, "left_out": by_reason(every), "versions": versions()}
    end = _ending(folder, results["method"])
    left_out = ({"part": part, **vars(problem)} for part, of_part in problems.items() for problem in of_part)
    for name, rows in {"predictions": predictions, "left_out": left_out}.items():
        replace_file(
            folder / f"{name}{end}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
    replace_file(folder / f"results{end}.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def _ending(folder: Path, method: str) -> str:
    """Return the suffix of the files' names; "" if the folder holds this method's results or none."""
    try:
        before = json_object(folder / "results.json").get("method")
    except (OSError, ValueError):
        return ""
    return "" if before in (None, method) else "-" + method.replace(" ", "-")


def summary(results: dict[str, Any], folder: Path) -> str:
    """Return the results in a few lines, with the folder that they were written to."""
    lines = [results["method"]]
    lines += [f"  {name:12} {text}" for name, text in in_words(results)]
    lines += [f"  {name}: {text}" for name, text in compared_in_words(results)]
    end = _ending(folder, results["method"])
    lines.append(f"done: results{end}.json, predictions{end}.jsonl and left_out{end}.jsonl are in {folder}")
    return "\n".join(lines)
