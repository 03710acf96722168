"""Runs of a study: for each arm and seed a pretraining, then its evaluations, each a command of `tgm-scale`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tgm_scale import config as configuration
from tgm_scale.assembly.objective import needs_captions
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.config import Config, EvaluationConfig, RunSettings, StudyConfig
from tgm_scale.evaluation import settings
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.study.fitting import refuse_unfit

PRETRAIN, UNTRAINED = "pretrain", "untrained"
_SHAPE = ("patch", "tubelet", "depth")  # keys of `model` that change a size


@dataclass(frozen=True)
class Arm:
    """An arm of the study: names of its masker and objective; "" for the weights that runs start from."""

    masker: str = ""
    objective: str = ""

    @property
    def name(self) -> str:
        return f"{self.masker}+{self.objective}" if self.masker else UNTRAINED


@dataclass(frozen=True)
class Job:
    """One command.

    what: `pretrain`, or the name of an evaluation; arguments: after `tgm-scale`; config: resolved from them;
    processes: number of its processes; origin: for an evaluation, the configuration of its pretraining."""

    arm: Arm
    seed: int
    what: str
    arguments: tuple[str, ...]
    config: RunSettings
    processes: int
    origin: Config | None = None

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)


@dataclass(frozen=True)
class Unit:
    """The commands of an arm and seed, one after another."""

    arm: Arm
    seed: int
    jobs: tuple[Job, ...]


def arms(study: StudyConfig) -> list[Arm]:
    section = study.study
    found = [Arm(masker, objective) for masker in section.maskers for objective in section.objectives]
    return [Arm()] * section.untrained + found


def units(study: StudyConfig) -> list[Unit]:
    """Return the units seed by seed, so that a time budget leaves out whole seeds. Raises ValueError, with the key."""
    found = [_unit(study, arm, seed) for seed in study.study.seeds for arm in arms(study)]
    _refuse_twins(found)
    _refuse_other_starts(found)
    return found


def _refuse_twins(found: list[Unit]) -> None:
    """Raise ValueError for two arms with the same training, for example if an objective sets what maskers set."""
    of: dict[str, Arm] = {}
    for job in pretrainings(found):
        tree = job.config.model_dump(mode="json")
        tree["run"].pop("dir")
        for section in ("log", "checkpoint", "profile"):
            tree.pop(section)
        if twin := of.get(key := json.dumps(tree, sort_keys=True)):
            raise ValueError(
                f"study.maskers, study.objectives: {twin.name} and {job.arm.name} train one configuration, and their "
                "difference would be 0 by name alone: give them different values (an objective's are laid over a "
                "masker's), or leave one out"
            )
        of[key] = job.arm


def _refuse_other_starts(found: list[Unit]) -> None:
    """Raise ValueError for an arm that does not start from the weights that are evaluated as untrained."""
    random = {(unit.seed, job.what): job.config for unit in found if not unit.arm.masker for job in unit.jobs}
    for unit in found:
        for job in unit.jobs:
            start = random.get((unit.seed, job.what))
            if job.origin is None:
                continue
            if isinstance(start, settings.FinetuneConfig):
                _refuse_other_initialisation(job.what, start.model.initialisation, job.origin.model.initialisation)
            if not isinstance(start, settings.FrozenConfig):
                continue
            own = {f"model.{key}": getattr(job.origin.model, key) for key in ("size", "initialisation", *_SHAPE)}
            untrained = {"model.size": start.encoder.size, "model.initialisation": start.encoder.initialisation}
            if other := [f"{key}={value}" for key, value in own.items() if value != untrained.get(key)]:
                raise ValueError(
                    f"study.untrained=true: {unit.arm.name} has {', '.join(other)}, and does not start from the "
                    "weights of study.config and study.set: give them there, or leave study.untrained out"
                )


def _refuse_other_initialisation(what: str, scratch: str, pretrained: str) -> None:
    if scratch != pretrained:
        raise ValueError(
            f"study.evaluations.{what}: model.initialisation={scratch} is where study.untrained=true starts from, and "
            f"pretrainings start from {pretrained}: set model.initialisation={pretrained} there"
        )


def _unit(study: StudyConfig, arm: Arm, seed: int) -> Unit:
    section, folder = study.study, Path(study.run.dir) / arm.name / f"seed-{seed}"
    jobs = []
    of_arm = [*section.set, *section.maskers.get(arm.masker, []), *section.objectives.get(arm.objective, [])]
    given = [*of_arm, configuration.override("run.dir", folder / PRETRAIN), f"run.seed={seed}"]
    keys = [f"study.maskers.{arm.masker}", f"study.objectives.{arm.objective}"] if arm.masker else []
    try:
        pretrained = configuration.load(section.config, given)
        process = first_process(section.processes)
        shape = plan_pretraining(pretrained, process).shape
    except ValueError as mistake:
        raise ValueError(f"{', '.join(['study.config', 'study.set', *keys])}: {mistake}") from None
    if arm.masker:
        line = ("pretrain", "--config", section.config, *given)
        jobs.append(Job(arm, seed, PRETRAIN, line, pretrained, section.processes))
    for name, evaluation in section.evaluations.items():
        projected = arm.masker and needs_captions(pretrained.objective)
        if evaluation.command == "retrieve" and not projected:
            continue
        overrides = [*evaluation.set, configuration.override("run.dir", folder / name), f"run.seed={seed}"]
        try:
            overrides += (_origin if arm.masker else _untrained)(evaluation, pretrained, overrides)
            config = _load(evaluation, overrides)
            scratch = evaluation.command == "finetune" and not arm.masker  # reads no pretraining
            refuse_unfit(evaluation.command, config, None if scratch else shape, process)
        except ValueError as mistake:
            raise ValueError(f"study.evaluations.{name}: {mistake}") from None
        line = (evaluation.command, *(("--config", evaluation.config) if evaluation.config else ()), *overrides)
        jobs.append(Job(arm, seed, name, line, config, section.processes, pretrained if arm.masker else None))
    return Unit(arm, seed, tuple(jobs))


def first_process(processes: int) -> ProcessInfo:
    return ProcessInfo(0, processes, 0, torch.device("cpu"))


def _origin(evaluation: EvaluationConfig, pretrained: Config, overrides: list[str]) -> list[str]:
    key = "train.init_from" if evaluation.command == "finetune" else "encoder.checkpoint"
    return [configuration.override(key, pretrained.run.dir)]


def _untrained(evaluation: EvaluationConfig, pretrained: Config, overrides: list[str]) -> list[str]:
    """Return overrides for random weights of the same shape, seed and initialisation.

    Clips are as the evaluation sets them, else as in the pretraining; a finetuning starts from scratch. overrides:
    those given before. Raises ValueError."""
    model, data = pretrained.model, pretrained.data
    if pretrained.train.init_from is not None:
        raise ValueError(
            f"study.untrained=true: study.config has train.init_from={pretrained.train.init_from}, and the weights "
            "that runs start from are then not random: leave study.untrained out"
        )
    if evaluation.command == "finetune":
        config = _load(evaluation, overrides)
        assert isinstance(config, settings.FinetuneConfig)
        if config.train.init_from is not None:
            raise ValueError(
                f"{evaluation.config}: train.init_from={config.train.init_from}, and study.untrained=true starts from "
                "scratch: leave it out; the other arms start from their pretraining"
            )
        return []
    changed = [key for key in _SHAPE if getattr(model, key) is not None]
    if changed:
        raise ValueError(
            f"study.untrained=true: encoder.checkpoint=random has the size's own shape, and study.config or study.set "
            f"has {', '.join(f'model.{key}' for key in changed)}: leave study.untrained out"
        )
    found = ["encoder.checkpoint=random", f"encoder.size={model.size}"]
    found.append(f"encoder.initialisation={model.initialisation}")
    config = _load(evaluation, [*overrides, *found])
    assert isinstance(config, settings.FrozenConfig)
    of_pretraining = {"frames": data.frames, "image_size": data.size}
    found += [f"encoder.{key}={of}" for key, of in of_pretraining.items() if getattr(config.encoder, key) is None]
    if config.data.stride is None:
        found.append(f"data.stride={data.stride}")
    if config.data.standardise is None and data.standardise:
        found.append("data.standardise=true")
    return found


def _load(evaluation: EvaluationConfig, overrides: list[str]) -> settings.FrozenConfig | settings.FinetuneConfig:
    if evaluation.command == "finetune":
        assert evaluation.config is not None
        return settings.load_finetune(evaluation.config, overrides)
    kind = settings.FrozenConfig if evaluation.command == "retrieve" else settings.SupervisedConfig
    return settings.load_frozen(evaluation.config, overrides, kind)


def pretrainings(found: list[Unit]) -> Iterator[Job]:
    """Yield one pretraining of each arm."""
    seen: set[Arm] = set()
    for unit in found:
        if unit.arm.masker and unit.arm not in seen:
            seen.add(unit.arm)
            yield unit.jobs[0]
