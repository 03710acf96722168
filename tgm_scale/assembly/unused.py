"""Keys of a training's configuration that were set and have no effect."""

from __future__ import annotations

from tgm_scale.assembly.objective import weights_of
from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.assembly.towers import IMAGE_MAPS, online_maps
from tgm_scale.config.changed import changed, not_used
from tgm_scale.config.data_sections import ClipsConfig
from tgm_scale.config.sections import Config, ModelConfig
from tgm_scale.data.lists.reading import is_list
from tgm_scale.objectives.term import CAPTIONS, TARGETS

_DECODER = ("decoder_depth", "decoder_attention", "decode_ratio")
_SCORED = {"relevance", "features", "parts"}  # those of IMAGE_MAPS that depend on guidance.scorer
_BY_TARGETS = {"pixels", "differences", "policy"}  # terms that use objective.normalise_by


def unused_in_pretraining(config: Config, plan: RunPlan) -> list[str]:
    """Return one line for each reason why keys have no effect."""
    assert plan.masker is not None
    named = config.data.corpora()
    return not_used(
        {
            f"by masks of {plan.masker.name} and {config.objective.in_words()}": [
                *_of_guidance(config, plan),
                *_of_objective(config, plan),
                *_of_masking(config, plan),
            ],
            "by data.sampling=segments": _of_segments(config.data),
            "where nothing is a list": changed(
                config.data, "data", ("root",) * (not any(is_list(c.path) for c in named))
            ),
            f"in a run of {plan.steps} steps": _beyond_the_end(config, plan.steps),
            "without knn.every=STEPS": [] if config.knn.every else _of_neighbours(config),
        }
    )


def unused_in_finetuning(data: ClipsConfig, model: ModelConfig) -> list[str]:
    return not_used(
        {"by finetuning": changed(model, "model", _DECODER), "by data.sampling=segments": _of_segments(data)}
    )


def _beyond_the_end(config: Config, steps: int | None) -> list[str]:
    """Keys whose first turn would come after the last step; none where the number of steps is not known yet."""
    every = {"knn.every": config.knn.every, "log.pictures_every": config.log.pictures_every}
    return [] if steps is None else [key for key, count in every.items() if count and count > steps]


def _of_neighbours(config: Config) -> list[str]:
    """Return the unused keys of knn, except those of the clips that pictures are drawn of."""
    drawn = config.log.pictures_every is not None and config.knn.test is not None and not config.guidance.cached
    return changed(config.knn, "knn", ("train", "k") if drawn else None)


def _of_segments(data: ClipsConfig) -> list[str]:
    return changed(data, "data", ("stride",)) if data.sampling == "segments" else []


def _of_guidance(config: Config, plan: RunPlan) -> list[str]:
    guidance, needs = config.guidance, plan.needs
    seen, online, embedded = needs & IMAGE_MAPS, online_maps(config.guidance, plan.needs), CAPTIONS in plan.terms
    by_device = online or embedded or ("flow" in needs and guidance.flow != "dis")  # DIS runs where clips are decoded
    used = {
        "towers": bool(seen) or embedded,
        "scorer": bool(needs & _SCORED),
        "frames_per_tubelet": bool(seen),
        "resolution": bool(seen),
        "captions": "relevance" in needs,
        "flow": "flow" in needs,
        "cached": "relevance" in needs,
        "compile": bool(online),
        "own_stream": bool(by_device),
    }
    return changed(guidance, "guidance", [key for key, has_effect in used.items() if not has_effect])


def _of_masking(config: Config, plan: RunPlan) -> list[str]:
    masker = plan.masker
    assert masker is not None
    used = {
        "targets": TARGETS in plan.terms and masker.target_count < masker.hidden_count,  # otherwise all are kept
        "whole_parts": masker.recipe.rule == "stratified",
    }
    return [f"masking.options.{key}" for key in config.masking.options if not used.get(key, True)]


def _of_objective(config: Config, plan: RunPlan) -> list[str]:
    assert plan.masker is not None
    weights = weights_of(config.objective, plan.masker)
    used = {
        "contrastive_batch": CAPTIONS in plan.terms,
        "queue": "nearest" in weights,
        "normalise_by": bool(_BY_TARGETS & weights.keys()),
    }
    keys = changed(config.objective, "objective", [key for key, has_effect in used.items() if not has_effect])
    return keys if TARGETS in plan.terms else [*changed(config.model, "model", _DECODER), *keys]
