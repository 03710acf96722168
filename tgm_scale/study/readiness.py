"""Checks that the data and frozen models of a study exist and can be used, before pretrainings are paid for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tgm_scale.assembly.checks import PATTERN, check
from tgm_scale.assembly.corpora import make_synthetic, open_of_run
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.config import Config
from tgm_scale.conversion.read import TrainedOn
from tgm_scale.data.lists.reading import is_list
from tgm_scale.data.lists.selection import Role
from tgm_scale.data.shards.inventory import refuse_above
from tgm_scale.evaluation import baselines, settings
from tgm_scale.evaluation.classes import ordered, untrained_classes
from tgm_scale.evaluation.labelled import labelled_inventory
from tgm_scale.evaluation.probe import refuse_too_few
from tgm_scale.evaluation.retrieve import captioned
from tgm_scale.evaluation.session import PARTS, open_split
from tgm_scale.finetuning.setup import refuse_share
from tgm_scale.runtime.files import like
from tgm_scale.study.arms import PRETRAIN, Job, Unit, first_process, pretrainings


def prepare(found: list[Unit], processes: int, make: bool = True) -> None:
    """Check each arm's data and frozen models once, as its pretraining would, and the data of each evaluation.

    make: create a synthetic corpus that several runs would otherwise create at the same time. Raises ValueError that
    names the arm or the evaluation."""
    unmade: set[Path] = set()
    opened: set[tuple[str, bool, bool]] = set()
    for job in pretrainings(found):
        assert isinstance(job.config, Config)
        try:
            plan = plan_pretraining(job.config, first_process(processes))
            check(job.config, plan)
            data = job.config.data
            lists = all(is_list(entry.path) and "://" not in entry.path for entry in data.corpora())
            asked = data.model_dump_json(), plan.captions, (job.folder / "checkpoints").exists()
            if lists and asked not in opened:  # opening shards would index them
                open_of_run(job.config, plan.captions, plan.without_captions)
                opened.add(asked)
        except ValueError as mistake:
            raise ValueError(f"{job.arm.name}: {mistake}") from None
        if make:
            make_synthetic(job.config.data)
        elif job.config.data.synthetic is not None:
            unmade.add(Path(job.config.data.corpora()[0].path))
    for what, job in {job.what: job for unit in found for job in unit.jobs if job.what != PRETRAIN}.items():
        try:
            _refuse_unusable(job, unmade)
        except ValueError as mistake:
            raise ValueError(f"study.evaluations.{what}: {mistake}") from None


def unlike_clips(found: Sequence[Unit]) -> list[str]:
    """Return warnings about evaluations that sample clips differently from the pretraining, each once, with its
    arms."""
    arms_of: dict[tuple[str, str], dict[str, None]] = {}
    for job in (job for unit in found for job in unit.jobs if job.origin is not None):
        assert job.origin is not None and isinstance(job.config, (settings.FrozenConfig, settings.FinetuneConfig))
        of, data = job.origin.data, job.config.data
        stride = of.stride if data.stride is None else data.stride
        standardise = of.standardise if data.standardise is None else data.standardise
        trained = TrainedOn.of(of.sampling, of.stride, of.standardise)
        for note in trained.unlike(data.sampling, stride, standardise):
            arms_of.setdefault((job.what, note.removeprefix("warning: ")), {})[job.arm.name] = None
    return [
        f"warning: study.evaluations.{what} of {', '.join(names)}: {note}" for (what, note), names in arms_of.items()
    ]


def _refuse_unusable(job: Job, unmade: set[Path]) -> None:
    """Raise ValueError if the evaluation would, as far as its data are local.

    unmade: folders of shards that a start creates; data names the folder or a pattern in it."""
    assert isinstance(job.config, (settings.FrozenConfig, settings.FinetuneConfig))
    local: list[Role] = []
    for role in PARTS:
        given = getattr(job.config.data, role) or []
        names = [given] if isinstance(given, str) else given
        if any({Path(name), Path(name).parent} & unmade for name in names):
            continue
        for name in names:
            if "://" not in name and not set(name) & PATTERN and not Path(name).exists():
                raise ValueError(f"data.{role}={name}: no such file or folder{like(name)}")
        if names and not any("://" in name for name in names):
            local.append(role)
    if job.arguments[0] != "retrieve":
        _refuse_labelled(job.arguments[0], job.config, local)
    elif "test" in local:
        assert isinstance(job.config, settings.FrozenConfig)
        captioned(job.config) if not job.config.retrieve.zero_shot else open_split(job.config.data, "test")


def _refuse_labelled(
    command: str, config: settings.FrozenConfig | settings.FinetuneConfig, parts: Sequence[Role]
) -> None:
    """Raise ValueError if the command cannot use the labels of these parts."""
    sources = {role: open_split(config.data, role, config.run.seed) for role in parts}
    for role, source in sources.items():
        refuse_above([labelled_inventory(role, source)], config.data.max_left_out_share)
    if "train" not in sources:
        return
    trained = sources["train"].sample_labels
    ordered(trained, config.data.classes)
    if "test" in sources:
        untrained_classes(trained, sources["test"].sample_labels)
    if command == "probe":
        refuse_too_few(len(set(trained)), len(trained), config.data.share)
    if isinstance(config, settings.FinetuneConfig):
        refuse_share(config, sources["train"])
    of = config.finetune if isinstance(config, settings.FinetuneConfig) else config.probe
    if command != "knn" and of.baselines:
        baselines.refuse(f"{command}.baselines", trained, config.data.share)
