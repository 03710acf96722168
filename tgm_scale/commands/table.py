"""All commands of `tgm-scale` by group, their list as text, and the commands nearest to a typed one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from tgm_scale.commands import benchmark, convert, evaluations, pages, plan, runs, shards, study
from tgm_scale.commands.command import Command

GROUPS: dict[str, list[Command]] = {
    "data": shards.COMMANDS,
    "before a run": [pages.PREVIEW, runs.CONFIG, plan.PLAN, runs.PREFLIGHT, plan.TUNE],
    "training": [runs.PRETRAIN, runs.FINETUNE, study.STUDY],
    "runs": [runs.STATUS, pages.REPORT, runs.COMPARE, runs.CHECK],
    "evaluation": evaluations.COMMANDS,
    "checkpoints": [convert.COMMAND],
    "measuring": benchmark.COMMANDS,
}
COMMANDS = {command.words: command for group in GROUPS.values() for command in group}
FAMILIES = {words.split()[0] for words in COMMANDS if " " in words}  # first words of two-word commands
_WIDTH = max(map(len, COMMANDS))
_NEAR = 0.6  # difflib's ratio, with its own default: `pretrian` is 0.88 to `pretrain`, 0.5 to any other command


def find(given: Sequence[str]) -> tuple[Command | None, Sequence[str]]:
    """Return the command named by the first words, and the words after them."""
    for words in (1, 2):
        if (found := COMMANDS.get(" ".join(given[:words]))) is not None:
            return found, given[words:]
    return None, given


def described() -> str:
    """Return the list of commands by group, one per line."""
    groups = [f"{group}:\n" + "\n".join(map(_line, commands)) for group, commands in GROUPS.items()]
    return "\n\n".join(groups)


def family(first: str) -> str:
    """Return the commands that begin with a word, one per line."""
    return "\n".join(_line(command) for words, command in COMMANDS.items() if words.split()[0] == first)


def _line(command: Command) -> str:
    return f"  {command.words:<{_WIDTH}}  {command.summary}"


def nearest(given: Sequence[str]) -> list[str]:
    """Return commands whose words, last word or former name resemble the input, the most similar first; after the
    first word of a family only its commands."""
    if given[0] in FAMILIES:
        scores = {words: _likeness(given[1], words.split()[1]) for words in COMMANDS if words.split()[0] == given[0]}
    else:
        typed = {given[0], " ".join(given[:2])}
        scores = {
            words: max(_likeness(one, name) for one in typed for name in (words, words.split()[-1], command.former))
            for words, command in COMMANDS.items()
        }
    return [words for words in sorted(scores, key=lambda one: -scores[one]) if scores[words] >= _NEAR][:3]


def _likeness(typed: str, name: str) -> float:
    """Return a similarity from 0 to 1, regardless of case, a file's folder and ending, and separators between
    words."""
    plain, known = typed.lower().rpartition("/")[2].removesuffix(".py"), name
    for sign in "-_ ":
        plain, known = plain.replace(sign, ""), known.replace(sign, "")
    return difflib.SequenceMatcher(None, plain, known).ratio()
