"""The objective of a configuration: its terms by weight, what they need, and which settings have to go together."""

from __future__ import annotations

from tgm_scale.config.sections import Config, ObjectiveConfig
from tgm_scale.masking.recipes import RECIPES, Masker
from tgm_scale.masking.saliency import SOURCES
from tgm_scale.models.vit import ModelSize
from tgm_scale.objectives import policy
from tgm_scale.objectives.term import CAPTIONS, FEATURES, MASKS, TARGETS, TermSettings
from tgm_scale.objectives.terms import TERMS, Objective
from tgm_scale.runtime.mistakes import nearest

# peak bytes a pair of the terms with their gradients, measured: tests/objectives/test_pair_memory.py
_PAIR_BYTES = {"contrast": 24, "sigmoid": 36, "nearest": 24}
_MOST = max(_PAIR_BYTES.values())  # of a term that is not measured, such as one of your own


def weights_of(settings: ObjectiveConfig, masker: Masker) -> dict[str, float]:
    """Return the terms of weight above 0; a learned mask brings the one that teaches it, by its paper's weight where
    none is given. Raises ValueError for a name that is not in the table, and for a mask and terms that do not
    agree."""
    weights, taught_by = _named(settings), masker.taught_by
    for name in weights:
        if MASKS in TERMS[name].needs and name != taught_by:
            raise ValueError(
                f"objective.terms.{name} teaches another mask than that of masking.recipe={masker.name}: leave it "
                f"out, or set masking.recipe={_taught(name)}"
            )
    if taught_by is None:
        return weights
    if "pixels" not in weights:
        raise ValueError(
            f"masking.recipe={masker.name} learns from the error of reconstructed pixels, and {settings.key('pixels')}"
            "=0 learns none: give it a weight above 0, such as 1"
        )
    if (settings.terms or {}).get(taught_by) == 0:
        raise ValueError(
            f"objective.terms.{taught_by}=0: masking.recipe={masker.name} would learn nothing by it: leave it out "
            f"(its weight is then {policy.WEIGHT:g}), or choose another recipe"
        )
    return {taught_by: policy.WEIGHT, **weights}


def _taught(term: str) -> str:
    """Return the recipe whose mask a term teaches."""
    learned = {name: SOURCES[source].learned for name, recipe in RECIPES.items() for source in recipe.sources}
    return next(name for name, found in learned.items() if found is not None and found.taught_by == term)


def _named(settings: ObjectiveConfig) -> dict[str, float]:
    for name in settings.terms or {}:
        if name not in TERMS:
            raise ValueError(f"objective.terms.{name}: no such term; {nearest(name, list(TERMS))}")
    return settings.weights()


def needs_captions(settings: ObjectiveConfig) -> list[str]:
    """Return the terms that read captions."""
    return [name for name in _named(settings) if CAPTIONS in TERMS[name].needs]


def pair_bytes(settings: ObjectiveConfig) -> int:
    """Return the bytes of a coupled term for a pair of a clip and a caption: the logits and the tensors of their
    gradient; terms are computed one after another."""
    return max((_PAIR_BYTES.get(name, _MOST) for name in needs_captions(settings)), default=0)


def decodes(settings: ObjectiveConfig) -> bool:
    """Return whether a term reads hidden tokens, so that the decoder runs."""
    return any(TARGETS in TERMS[name].needs for name in _named(settings))


def check_objective(config: Config) -> None:
    """Raise ValueError where a term lacks a frozen model, or other clips to contrast a clip with."""
    settings, towers = config.objective, config.guidance.towers
    for name in _named(settings):
        for need, tower in ((CAPTIONS, "a text tower"), (FEATURES, "an image tower")):
            if need in TERMS[name].needs and towers is None:
                raise ValueError(
                    f"{settings.key(name)} needs {tower}: set guidance.towers to the folder of a CLIP or SigLIP model "
                    f"(or to 'small'), or set {' '.join(settings.without({name}))}"
                )
    coupled = needs_captions(settings)
    group, repeats = settings.contrastive_batch or config.train.global_batch_size, config.data.repeated_augmentation
    if coupled and group <= repeats:
        key = "train.global_batch_size" if settings.contrastive_batch is None else "objective.contrastive_batch"
        raise ValueError(
            f"{key}={group} is one clip (data.repeated_augmentation={repeats} times), and {settings.key(coupled[0])} "
            f"needs other clips: make it larger, or set {' '.join(settings.without(coupled))}"
        )


def build_objective(
    settings: ObjectiveConfig, masker: Masker, size: ModelSize, features: int = 0, text: int = 0
) -> Objective:
    """Build the terms with what they learn, fp32, on the CPU. features, text: widths of the frozen towers' outputs."""
    of_terms = TermSettings(size, features, text, settings.normalise_by, settings.queue)
    return Objective.of(weights_of(settings, masker), of_terms, settings.contrastive_batch)
