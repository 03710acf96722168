"""Table of masking recipes, and the masker built from a recipe and a configuration.

A recipe is a weighted mixture of saliency sources, and a selection rule. All counts are fixed when the masker is
built; shares of a group of tokens are rounded down: 0.6 of a slot of 196 hides 117.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from tgm_scale.contracts import Grid, Mask, share_of
from tgm_scale.masking import rules
from tgm_scale.masking.rules import RULES, SelectionSpec
from tgm_scale.masking.saliency import SOURCES, Learned, SaliencyInputs
from tgm_scale.runtime.mistakes import nearest

SCALES = ("rank", "raw")
TARGETS = ("random", "running_cell")
_REACH = (1e-6, 1e6)  # of weights and temperatures: outside it float32 loses one source beside another, or all


@dataclass(frozen=True)
class Recipe:
    """Saliency sources and the selection rule. The fields are the keys of `masking.options`."""

    sources: Mapping[str, float]  # source name -> weight
    scope: str = "slot"
    rule: str = "top_k"
    temperature: float = 0.0  # of the Gumbel noise, in units of the scaled saliency; 0 = none
    scale: str = "rank"  # sources are mixed as ranks within their group (0..1), or unscaled
    # of the rule stratified: 0 = an equal share of every part, 1 = whole parts; a pair: at start and end of the run
    whole_parts: float | Sequence[float] = 0.0
    rate: float = 1.0  # learning rate of a learned mask, relative to the model's
    targets: str = "random"  # the hidden tokens that model.decode_ratio keeps; running_cell: VideoMAE V2's


RECIPES: dict[str, Recipe] = {
    "random": Recipe({"random": 1.0}, scope="clip"),  # MAE-ST, arXiv 2205.09113
    "tube": Recipe({"random": 1.0}, scope="tube"),  # VideoMAE, arXiv 2203.12602
    "frame": Recipe({"frame": 1.0}, scope="clip"),  # VideoMAE, ablation
    "block": Recipe({"block": 1.0}, scope="clip"),  # MAE-ST, ablation
    "text_guided": Recipe({"text": 1.0}, scope="slot"),  # TGM, arXiv 2408.00759
    "motion_guided": Recipe({"motion": 1.0}, rule="moving_box", scale="raw"),  # MGM, arXiv 2308.12962
    "flow_guided": Recipe({"flow": 1.0}, rule="bottom_k", scale="raw"),  # MGMAE, arXiv 2308.10794: tracks the visible
    "attention": Recipe({"attention": 1.0}, rule="bottom_k", scale="raw", temperature=1.0),  # UMT, arXiv 2303.16058
    # SemMAE, arXiv 2206.10207: from an equal share of every part to whole parts
    "part_based": Recipe({"parts": 1.0}, rule="stratified", scale="raw", whole_parts=(0.0, 1.0)),
    # learned: AdaMAE, arXiv 2211.09120, the visible tokens; AutoMAE, arXiv 2303.06583, the hidden, from attention
    "adamae": Recipe({"sampler": 1.0}, scope="clip", rule="bottom_k", scale="raw", temperature=1.0),
    "automae": Recipe({"generator": 1.0}, scale="raw", temperature=1.0, rate=10.0),
}


@dataclass(frozen=True)
class Masker:
    """Mask generator for batches of clips, on their device; a seed gives the same mask in any batch and place.

    progress: completed share of the run's steps, including the mask's own: 1 at the last, 0 outside of a run."""

    name: str
    recipe: Recipe
    grid: Grid
    hidden_per_group: int
    visible_count: int
    target_count: int

    @property
    def needs(self) -> set[str]:
        """Maps that a call requires, by the names in assembly/towers.py, including those of learned masks."""
        return set().union(*(SOURCES[name].needs for name in self.recipe.sources))

    @property
    def taught_by(self) -> str | None:
        """Term of the objective that teaches a learned mask; None for any other."""
        return None if self._learned is None else self._learned.taught_by

    @property
    def learned(self) -> str | None:
        """Learned source of a learned mask; None for any other."""
        return next((name for name in self.recipe.sources if SOURCES[name].learned), None)

    @property
    def _learned(self) -> Learned | None:
        return None if self.learned is None else SOURCES[self.learned].learned

    @property
    def hidden_count(self) -> int:
        """Number of tokens that the rule hides, including the targets."""
        return self.hidden_per_group * (self.grid.tokens // rules.group_size(self.recipe.scope, self.grid))

    def __call__(self, seeds_B: Tensor, progress: float = 0.0, /, **aux: Tensor | None) -> Mask:
        """Return the mask of each clip.

        seeds_B: int64 [B], one for each sample. aux: the maps in `needs` (others are ignored), float [B, S, R, C]
        on the seeds' device (flow: [B, T, 2, h, w], see saliency.mixture). Raises ValueError where one is missing."""
        hidden_BK, visible_BK = self._split(seeds_B, progress, aux)
        cells_BN = rules.running_cell(seeds_B, self.grid) if self.recipe.targets == "running_cell" else None
        return Mask(
            visible=rules.draw(visible_BK, self.visible_count, self.grid, seeds_B, "mask.visible"),
            target=rules.draw(hidden_BK, self.target_count, self.grid, seeds_B, "mask.target", cells_BN),
        )

    def hidden(self, seeds_B: Tensor, progress: float = 0.0, /, **aux: Tensor | None) -> Tensor:
        """Return the tokens that the rule hides, before any thinning or selection of targets: bool [B, S, R, C]."""
        hidden_BK, _ = self._split(seeds_B, progress, aux)
        grid = self.grid
        hidden_BN = torch.zeros(len(seeds_B), grid.tokens, dtype=torch.bool, device=seeds_B.device)
        return hidden_BN.scatter_(1, hidden_BK, True).view(-1, grid.slots, grid.rows, grid.columns)

    def saliency(self, seeds_B: Tensor, **aux: Tensor | None) -> Tensor:
        """Return the mixed, scaled saliency before noise: float32 [B, S, R, C]; S = 1 under the scope `tube`."""
        given = {name: map_ for name, map_ in aux.items() if map_ is not None}
        for name in sorted(self.needs - given.keys()):
            raise ValueError(
                f"masking.recipe={self.name} needs {name} maps and this batch has none: choose another recipe or "
                f"sources (masking.options.sources), or data that brings {name}"
            )
        grid, scope = self.grid, self.recipe.scope
        total = sum(self.recipe.sources.values())
        mixed = torch.zeros((), device=seeds_B.device)
        inputs = SaliencyInputs(seeds_B, grid, given, 1 - self.hidden_count / grid.tokens)
        for name, weight in self.recipe.sources.items():
            score_BSRC = SOURCES[name].score(inputs)
            assert score_BSRC.shape == (len(seeds_B), grid.slots, grid.rows, grid.columns), (name, score_BSRC.shape)
            pooled = rules.pool(score_BSRC, scope)
            scaled = rules.rank_normalise(pooled, scope) if self.recipe.scale == "rank" else pooled
            mixed = mixed + scaled * (weight / total)
        return mixed

    def whole_parts(self, progress: float) -> float:
        """Interpolate from the first of a pair to the second by the square of the progress (SemMAE, section 3.3)."""
        given = self.recipe.whole_parts
        if not isinstance(given, Sequence):
            return given
        first, last = given
        return first + (last - first) * progress**2

    def log_probability(self, seeds_B: Tensor, **aux: Tensor | None) -> Tensor:
        """Return each token's log-probability to be drawn first in its group, as visible or hidden by the rule:
        float32 [B, N], with the maps' gradient. For a learned mask; for a relaxed one, given the draw's noise."""
        assert self._learned is not None
        logits, temperature = self.saliency(seeds_B, **aux).float(), self.recipe.temperature
        noisy = self._learned.relaxed
        logits = rules.add_gumbel_noise(logits, temperature, seeds_B) if noisy else logits / temperature
        log_BGn = rules.grouped(logits, self.recipe.scope).log_softmax(dim=-1)
        slots = self.grid.slots if self.recipe.scope == "tube" else 1
        return log_BGn.flatten(1).repeat(1, slots)

    def _split(self, seeds_B: Tensor, progress: float, aux: Mapping[str, Tensor | None]) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        saliency = self.saliency(seeds_B, **aux)
        if recipe.temperature:
            saliency = rules.add_gumbel_noise(saliency, recipe.temperature, seeds_B)
        spec = SelectionSpec(seeds_B, recipe.scope, recipe.scale, self.hidden_per_group, self.whole_parts(progress))
        priority = RULES[recipe.rule](saliency, spec)
        return rules.split(priority, recipe.scope, self.hidden_per_group, self.grid, seeds_B)

    def summary(self) -> str:
        """Return one line on what is hidden, visible and reconstructed, with the rounding."""
        grid, size = self.grid, rules.group_size(self.recipe.scope, self.grid)
        group = {"clip": "the clip", "slot": "each slot", "tube": "each slot, the same in all"}[self.recipe.scope]
        sources = " + ".join(f"{weight:g} {name}" for name, weight in self.recipe.sources.items())
        first, last = self.whole_parts(0.0), self.whole_parts(1.0)
        course = (
            f"; whole parts {first:g} at the start, {last:g} at the end"
            if first != last and self.recipe.rule == "stratified"
            else ""
        )
        return (
            f"{self.name} ({sources}, {self.recipe.rule}): hides {self.hidden_per_group} of {size} tokens of {group} "
            f"({self.hidden_count / grid.tokens:.1%} of {grid.tokens}, rounded down); {self.visible_count} visible, "
            f"{self.target_count} targets{course}"
        )


def build_masker(
    recipe: str,
    grid: Grid,
    mask_ratio: float,
    visible_ratio: float | None = None,
    decode_ratio: float = 1.0,
    **options: Any,
) -> Masker:
    """Build the masker of a configuration.

    recipe: a key of RECIPES. mask_ratio: share of the tokens that the rule hides. visible_ratio: share that the
    encoder sees, drawn at random from the tokens that are not hidden (None: all of them). decode_ratio: share of
    the hidden tokens that are targets, drawn at random. options: fields of the recipe to change. Raises ValueError
    naming the configuration's key."""
    chosen = _with_options(recipe, options)
    size = rules.group_size(chosen.scope, grid)
    hidden_per_group = _count(mask_ratio, size, "masking.mask_ratio", f"hides none of {size} tokens", top=False)
    if hidden_per_group == size:
        raise ValueError(f"masking.mask_ratio={mask_ratio} hides all of {size} tokens: lower it")
    hidden = hidden_per_group * (grid.tokens // size)
    visible = grid.tokens - hidden
    if visible_ratio is not None:
        if visible_ratio > 1 - mask_ratio + 1e-9:
            raise ValueError(
                f"masking.visible_ratio={visible_ratio} is more than what masking.mask_ratio={mask_ratio} leaves: "
                f"choose at most {1 - mask_ratio:.6g}, or lower masking.mask_ratio"
            )
        if visible_ratio < 1 - mask_ratio - 1e-9:  # equal: nothing to thin, whatever the rounding
            visible = _count(visible_ratio, grid.tokens, "masking.visible_ratio", "leaves no visible token", top=False)
    targets = _count(decode_ratio, hidden, "model.decode_ratio", f"leaves no target among {hidden} hidden tokens")
    return Masker(recipe, chosen, grid, hidden_per_group, visible, targets)


def _count(ratio: float, tokens: int, key: str, failure: str, top: bool = True) -> int:
    """Return `share_of`, at least 1. Raises ValueError."""
    if not (0 < ratio < 1 or (top and ratio == 1)):
        raise ValueError(f"{key}={ratio}: wanted a share above 0 and {'at most' if top else 'below'} 1")
    count = share_of(tokens, ratio)
    if count == 0:
        raise ValueError(f"{key}={ratio} {failure}: raise it to at least {1 / tokens:.3g}")
    return count


def _with_options(name: str, options: Mapping[str, Any]) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"masking.recipe={name}: unknown; {nearest(name, RECIPES)}")
    known = [f.name for f in fields(Recipe)]
    for option in options:
        if option not in known:
            raise ValueError(f"masking.options.{option}: unknown; {nearest(option, known)}")
    recipe = replace(RECIPES[name], **options)
    _check_sources(recipe.sources)
    choices = {"scope": rules.SCOPES, "rule": RULES, "scale": SCALES, "targets": TARGETS}
    for option, allowed in choices.items():
        value = getattr(recipe, option)
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"masking.options.{option}={value}: unknown; {nearest(str(value), allowed)}")
    if not _is_number(recipe.temperature, 0, 0) and not _is_number(recipe.temperature, *_REACH):
        raise ValueError(f"masking.options.temperature={recipe.temperature!r}: wanted 0, or a number from 1e-6 to 1e6")
    whole: Any = recipe.whole_parts
    pair = whole if isinstance(whole, (list, tuple)) and len(whole) == 2 else [whole]
    if not all(_is_number(share, 0, 1) for share in pair):
        raise ValueError(
            f"masking.options.whole_parts={whole!r}: wanted a number from 0 to 1, or two: those at the start and at "
            "the end of the run, such as [0, 1]"
        )
    _check_learned(recipe)
    _check_parts(recipe)
    return recipe


def _check_parts(recipe: Recipe) -> None:
    """Raise ValueError where numbers of parts would be averaged, ranked or summed: they are only names."""
    by_number = recipe.rule == "stratified" and recipe.scale == "raw"
    if "parts" not in recipe.sources and not by_number:
        return
    if set(recipe.sources) != {"parts"}:
        raise ValueError(
            f"masking.options.sources: {', '.join(recipe.sources)}: rule=stratified with scale=raw reads the numbers "
            "of parts, which are not mixed: give {parts: 1}, or scale=rank for bands of other sources"
        )
    fitting = {"rule": ("stratified",), "scale": ("raw",), "temperature": (0,), "scope": ("slot", "clip")}
    for option, values in fitting.items():
        if (value := getattr(recipe, option)) not in values:
            raise ValueError(
                f"masking.options.{option}={value}: the source parts gives numbers of parts, which have no order and "
                f"no mean: set {' or '.join(map(str, values))}, or choose other sources"
            )


def _check_learned(recipe: Recipe) -> None:
    """Raise ValueError unless a learned source is drawn from unchanged: its loss is that of its distribution."""
    learned = [source for source in recipe.sources if SOURCES[source].learned]
    if not _is_number(recipe.rate, 1e-3, 1e3) or (recipe.rate != 1 and not learned):
        wanted = "a number from 0.001 to 1000, such as 10" if learned else "none: nothing of this mask is learned"
        raise ValueError(f"masking.options.rate={recipe.rate!r}: wanted {wanted}")
    if not learned or not (of := SOURCES[learned[0]].learned):
        return
    if len(recipe.sources) > 1:
        raise ValueError(
            f"masking.options.sources: {learned[0]} is learned, and is not mixed with others: give it alone"
        )
    for option, value in {"rule": of.draws, "scale": "raw"}.items():
        if getattr(recipe, option) != value:
            raise ValueError(
                f"masking.options.{option}={getattr(recipe, option)}: the source {learned[0]} is learned, and tokens "
                f"are drawn from its logits: leave it out with the source's own recipe, or set {value}"
            )
    if not recipe.temperature:
        raise ValueError(
            f"masking.options.temperature=0: the source {learned[0]} learns a distribution to draw from, and 0 draws "
            "nothing: give one above 0, such as 1"
        )


def _check_sources(sources: Any) -> None:
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError(
            f"masking.options.sources={sources!r}: wanted weights by source name, such as {{text: 0.7, random: 0.3}}"
        )
    for name, weight in sources.items():
        if name not in SOURCES:
            raise ValueError(f"masking.options.sources.{name}: unknown; {nearest(str(name), SOURCES)}")
        if not _is_number(weight, *_REACH):
            raise ValueError(f"masking.options.sources.{name}={weight!r}: wanted a weight from 1e-6 to 1e6")


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
