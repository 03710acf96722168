"""Checks of a configuration before a run folder is made; they need neither processes nor a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tgm_scale.assembly.objective import check_objective
from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.assembly.towers import IMAGE_MAPS, online_maps, sees_images
from tgm_scale.config.data_sections import DataConfig
from tgm_scale.config.sections import Config, DeepSpeedConfig, GuidanceConfig, LogConfig
from tgm_scale.guidance.flow import check_flow
from tgm_scale.guidance.towers import check_folder, tower_folder
from tgm_scale.masking.recipes import Masker
from tgm_scale.objectives.term import FEATURES
from tgm_scale.objectives.terms import TERMS
from tgm_scale.runtime.files import like

_FILES = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".tar", ".gz", ".tgz", ".zip", ".mp4", ".webm", ".mkv", ".avi"}
PATTERN = set("*?[]{},")


def check(config: Config, plan: RunPlan) -> None:
    """Run all checks. Raises ValueError."""
    assert plan.masker is not None
    check_shards(config.data)
    check_compile(config.model.compile, config.deepspeed, plan.stage)
    check_guidance(config.guidance, plan.masker)
    check_objective(config)
    if FEATURES in plan.terms and config.guidance.towers is not None:
        settings = config.objective
        seeing = [name for name in settings.weights() if FEATURES in TERMS[name].needs]
        _refuse_text_alone(config.guidance, settings.key(seeing[0]), " ".join(settings.without(seeing)))
        check_folder(tower_folder(config.guidance.towers), ("image",))
    check_boards(config.log)


def check_guidance(guidance: GuidanceConfig, masker: Masker) -> None:
    """Raise ValueError where a frozen model that the recipe needs is not named, or cannot serve."""
    of_image = masker.needs & IMAGE_MAPS
    if of_image and guidance.towers is None:
        raise ValueError(
            f"masking.recipe={masker.name} is guided by a frozen model ({', '.join(sorted(of_image))}): set "
            "guidance.towers to the folder of a CLIP or SigLIP model, or to 'small'"
        )
    if guidance.towers is not None:
        if of_image:
            _refuse_text_alone(guidance, f"masking.recipe={masker.name}", "masking.recipe=tube")
        online = online_maps(guidance, masker.needs)
        check_folder(tower_folder(guidance.towers), ("text", "image") if online else ("text",))
    if "flow" in masker.needs:
        check_flow(guidance.flow)


def _refuse_text_alone(guidance: GuidanceConfig, key: str, remedy: str) -> None:
    """Raise ValueError where the key needs an image tower, and the towers are a text encoder alone."""
    if not sees_images(guidance):
        raise ValueError(
            f"{key} needs an image tower, one that shares its space with captions, and guidance.towers="
            f"{guidance.towers} is a text encoder alone, which serves the terms contrast, sigmoid and nearest: set "
            f"guidance.towers to the folder of a CLIP or SigLIP model (or to 'small'), or set {remedy}"
        )


def check_compile(compiled: bool, settings: DeepSpeedConfig, stage: int) -> None:
    """Raise ValueError for `model.compile` at ZeRO stage 3, where DeepSpeed gathers each layer's weights in Python as
    the layer is called: the compiler gets no two layers in one graph, and gives up after eight hooks of DeepSpeed."""
    if compiled and stage == 3:
        origin = f"deepspeed.stage={stage}"
        if settings.stage is None:
            origin = f"deepspeed.config={settings.config} (zero_optimization.stage={stage})"
        raise ValueError(
            f"model.compile=true does not go with {origin}, which gathers weights inside each block: set "
            "model.compile=false, or stage 0, 1 or 2"
        )


def check_boards(log: LogConfig) -> None:
    """Raise ValueError where the package that a board needs is not installed."""
    if log.wandb is None:
        return
    found = find_spec("wandb")
    if found is None or found.origin is None:  # a folder of this name, such as wandb itself makes
        raise ValueError(
            f"log.wandb.project={log.wandb.project}: the package wandb is not installed: pip install wandb, or set "
            "log.wandb=null"
        )


def check_shards(data: DataConfig) -> None:
    """Raise ValueError where a local file or folder does not exist, or where a synthetic corpus would be made at a
    name meant for a list, shards or a video."""
    missing = [entry.path for entry in data.corpora() if "://" not in entry.path]
    missing = [name for name in missing if not Path(name).exists()]
    if data.synthetic is None:
        if plain := [name for name in missing if not set(name) & PATTERN]:
            raise ValueError(
                f"data.shards={plain[0]}: no such file or folder{like(plain[0])}; "
                "wanted shards, videos or a list of them (data.synthetic.clips=64 beside it makes a corpus there)"
            )
    elif missing and (Path(missing[0]).suffix.lower() in _FILES or set(missing[0]) & PATTERN):
        raise ValueError(
            f"data.shards={missing[0]}: no such file{like(missing[0])}, and no name for the folder of a corpus "
            "that data.synthetic makes: correct data.shards, or set data.synthetic=null beside it"
        )
