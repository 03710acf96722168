"""Paired differences between the arms of a study, and between its objectives and its maskers overall.

Shapes: S seeds, M test clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tgm_scale.config import StudyConfig
from tgm_scale.evaluation.intervals import paired_interval
from tgm_scale.study.arms import Arm
from tgm_scale.study.outcomes import Key, Outcome

Tree = dict[str, Any]


def others(study: StudyConfig, arm: Arm) -> dict[str, Arm]:
    """Return the arms that an arm is compared with, by column name.

    These are the first objective with its masker, the first masker with its objective, and the weights that runs start
    from."""
    if not arm.masker:
        return {}
    first = Arm(next(iter(study.study.maskers)), next(iter(study.study.objectives)))
    found = {
        f"objective {first.objective}": Arm(arm.masker, first.objective),
        f"masker {first.masker}": Arm(first.masker, arm.objective),
        **({Arm().name: Arm()} if study.study.untrained else {}),
    }
    return {named: other for named, other in found.items() if other != arm}


def difference(outcomes: dict[Key, Outcome], pairs: Sequence[tuple[Arm, Arm]], seed: int) -> Tree:
    """Return the difference in the main metric, first minus second arm, averaged over the pairs.

    Over the seeds and clips that all arms share, with a 95 % interval over seeds and clips, and over seeds and groups
    if the clips have groups; empty if they share no clip. seed: of the bootstrap."""
    every = [arm for pair in pairs for arm in pair]
    seeds = _seeds(outcomes, every)
    shared = [outcomes[arm, number].right.keys() for arm in every for number in seeds]
    clips = sorted(set.intersection(*map(set, shared))) if shared else []
    if not clips:
        return {}
    right_ASM = torch.tensor(
        [[[outcomes[arm, number].right[clip] for clip in clips] for number in seeds] for arm in every]
    ).double()
    gain_SM = (right_ASM[::2] - right_ASM[1::2]).mean(dim=0)
    found: Tree = {"seeds": seeds, "clips": len(clips), **paired_interval(gain_SM, seed=seed)._asdict()}
    if less := _less_than_all(outcomes, seeds, len(clips)):
        found["part"] = less
    of_clips = outcomes[every[0], seeds[0]].groups
    groups = [group for clip in clips if (group := of_clips.get(clip))]
    if len(groups) == len(clips) and len(set(groups)) > 1:
        over = paired_interval(gain_SM, seed=seed, groups=groups)
        found["over groups"] = {"groups": len(set(groups)), **over._asdict()}
    return found


def _seeds(outcomes: dict[Key, Outcome], every: Sequence[Arm]) -> list[int]:
    """Return the seeds that all of these arms have, in order, since the bootstrap draws positions."""
    return sorted(seed for arm, seed in outcomes if arm == every[0] and all((one, seed) in outcomes for one in every))


def _less_than_all(outcomes: dict[Key, Outcome], seeds: list[int], clips: int) -> str:
    """Return a note if a difference covers fewer seeds or clips than some arm has; "" if it covers all."""
    all_seeds, all_clips = {seed for _, seed in outcomes}, max(len(one.right) for one in outcomes.values())
    words = [f"seed {', '.join(map(str, seeds))} alone"] * (len(seeds) < len(all_seeds))
    return " and ".join([*words, *[f"{clips} of {all_clips} test clips"] * (clips < all_clips)])


def effects(study: StudyConfig, outcomes: dict[Key, Outcome]) -> list[Tree]:
    """Return the effect of each objective and masker against the first: does one help whatever the other is?

    An objective's effect is the mean difference over the maskers, a masker's that over the objectives. Maskers (or
    objectives) count as fixed: the interval does not extend to others."""
    maskers, objectives = list(study.study.maskers), list(study.study.objectives)
    questions = [
        (objective, objectives[0], {one: (Arm(one, objective), Arm(one, objectives[0])) for one in maskers})
        for objective in objectives[1:]
    ] + [
        (masker, maskers[0], {one: (Arm(masker, one), Arm(maskers[0], one)) for one in objectives})
        for masker in maskers[1:]
    ]
    found = []
    for name, first, asked in questions:
        pairs = {one: pair for one, pair in asked.items() if _seeds(outcomes, pair)}
        if len(pairs) > 1:
            of = difference(outcomes, list(pairs.values()), study.run.seed)
            found.append({"of": name, "in place of": first, "over": list(pairs), **of})
    return found


def interval(found: Tree) -> str:
    if not found.get("seeds"):
        return "none: no seed and test clip that all have"
    text = f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    if over := found.get("over groups"):
        text += f"; over {over['groups']} groups [{over['low']:+.3f}, {over['high']:+.3f}]"
    return text + (f" (of {part})" if (part := found.get("part")) else "")
