"""Configuration section of a study: arms (maskers x objectives), seeds, evaluations, and limits on its cost."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from tgm_scale.config.data_sections import Section
from tgm_scale.config.sections import RunSettings

Overrides = list[str]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")  # also the name of a folder
_TAKEN = ("pretrain", "features")  # folders of each run
_OWN = ("run", "encoder.checkpoint", "train.init_from")  # keys that the study sets


class EvaluationConfig(Section):
    """Evaluation applied to every run."""

    command: Literal["knn", "probe", "finetune", "retrieve"] = Field(description="the command of tgm-scale")
    config: str | None = Field(None, description="its configuration; default: the keys of `set` alone")
    set: Overrides = Field(
        default_factory=list, description="section.key=value of the command, laid over its configuration"
    )


class StudySection(Section):
    config: str = Field(description="configuration of all pretraining runs")
    set: Overrides = Field(default_factory=list, description="section.key=value of all pretraining runs")
    maskers: dict[str, Overrides] = Field(
        min_length=1, description="by name, the section.key=value of each; others are compared with the first"
    )
    objectives: dict[str, Overrides] = Field(
        min_length=1, description="by name, the section.key=value of each; others are compared with the first"
    )
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="run.seed of the runs")
    evaluations: dict[str, EvaluationConfig] = Field(min_length=1, description="by name")
    untrained: bool = Field(
        False, description="evaluate the weights that the runs start from, too: what training adds to them"
    )
    parallel: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="runs at a time; default: one for each core, or each `processes` GPUs, of this host",
    )
    processes: int = Field(1, ge=1, le=4096, description="processes of each pretraining and finetuning run: its GPUs")
    hours: float | None = Field(
        None, gt=0, description="no pretraining begins that would not end within so many hours of a call; default: any"
    )

    @model_validator(mode="after")
    def _combinations(self) -> StudySection:
        for key in ("maskers", "objectives", "evaluations"):
            for name in getattr(self, key):
                if not _NAME.fullmatch(name) or name in _TAKEN:
                    raise ValueError(
                        f"study.{key}: found the name {name!r}: wanted at most 40 letters, digits, '_', '.' and '-', "
                        f"and not {' or '.join(_TAKEN)}"
                    )
        for key, overrides in self.overrides().items():
            for one in overrides:
                name, equals, _ = one.partition("=")
                if not equals:
                    raise ValueError(f"{key}: found {one!r}: wanted section.key=value, such as train.steps=100")
                if any(f"{name}.".startswith(f"{own}.") for own in _OWN):
                    raise ValueError(f"{key}: found {one!r}, which the study sets for each run: leave it out")
        for name, evaluation in self.evaluations.items():
            if evaluation.command == "finetune" and evaluation.config is None:
                raise ValueError(
                    f"study.evaluations.{name}.config: missing; finetune wants one, such as "
                    "configs/finetune_ucf101.yaml"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"study.seeds={self.seeds}: a seed is given twice: leave one out")
        return self

    def overrides(self) -> dict[str, Overrides]:
        """Return all overrides of the study by the key that contains them."""
        return {
            "study.set": self.set,
            **{f"study.maskers.{name}": given for name, given in self.maskers.items()},
            **{f"study.objectives.{name}": given for name, given in self.objectives.items()},
            **{f"study.evaluations.{name}.set": of.set for name, of in self.evaluations.items()},
        }


class StudyConfig(RunSettings):
    """Configuration of `tgm-scale study`. run.seed seeds the resampling for intervals."""

    commands = ("study",)
    study: StudySection
