"""EPIC-Kitchens actions from verb and noun: a pair that does not occur in training can still be predicted.

The protocol of EPIC-Kitchens-100 (Damen et al. 2022, section 4.1): verb and noun are predicted separately, an action's
probability is the product of theirs, and an action is right if both are.

Shapes: M test clips, N training clips, V verbs, W nouns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tgm_scale.evaluation import results
from tgm_scale.evaluation.classes import in_order

_ACTION = re.compile(r"\d+,\d+")
_ROWS = 64  # test clips at a time: 15 MB for 97 verbs and 300 nouns
Fit = Callable[[Tensor], Tensor]  # class numbers of the training clips, [N] -> scores before softmax, [M, classes]


def are_actions(labels: Sequence[str]) -> bool:
    """Return whether all labels are EPIC's, `verb,noun` in numbers."""
    return all(_ACTION.fullmatch(label) for label in labels)


def by_verb_and_noun(fit: Fit, train: Sequence[str], test: Sequence[str]) -> dict[str, Any]:
    """Return accuracies of verb, noun and their action, with intervals. train, test: the labels, `verb,noun`.

    Raises ValueError for scores that are not finite, and errors of `fit` with "verb" or "noun" in front."""
    found, logs, truths = {}, [], []
    for part, name in enumerate(("verb", "noun")):
        own, wanted = ([label.split(",")[part] for label in labels] for labels in (train, test))
        classes = in_order(own)
        try:
            scores = fit(results.class_numbers(classes, own))
        except ValueError as reason:
            raise ValueError(f"{name}: {reason}") from None
        results.refuse_not_finite(scores)
        logs.append(scores.double().log_softmax(dim=1))
        truths.append(results.class_numbers(classes, wanted))
        found[f"{name} top1"] = results.accuracy(logs[-1].argmax(1) == truths[-1])
    place_M = pair_places(logs[0], logs[1], truths[0], truths[1])
    found["verb x noun top1"] = results.accuracy(place_M == 0)
    found["verb x noun top5"] = results.accuracy(place_M < 5)
    return found


def pair_places(verb_MV: Tensor, noun_MW: Tensor, verb_M: Tensor, noun_M: Tensor) -> Tensor:
    """Return the place, from 0, of the right pair by the sum of log probabilities, int64 [M].

    Pairs of equal sum are placed before it. A verb or noun of -1, which training lacks, gets the last place."""
    places = []
    for verb_RV, noun_RW, verb_R, noun_R in zip(*(x.split(_ROWS) for x in (verb_MV, noun_MW, verb_M, noun_M))):
        sums_RP = (verb_RV[:, :, None] + noun_RW[:, None, :]).flatten(1)
        at_R1 = (verb_R.clamp(min=0) * noun_RW.shape[1] + noun_R.clamp(min=0))[:, None]
        place_R = (sums_RP >= sums_RP.gather(1, at_R1)).sum(1) - 1
        places.append(torch.where((verb_R >= 0) & (noun_R >= 0), place_R, sums_RP.shape[1]))
    return torch.cat(places)
