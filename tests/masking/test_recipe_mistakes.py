"""Mistakes in masking.* are named with their remedy before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest

from tgm_scale.contracts import Grid
from tgm_scale.masking.recipes import build_masker

CLIP = Grid(8, 14, 14)  # 16 frames of 224 pixels, tubelets of 2 x 16 x 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "text_guide"}, r"masking.recipe=text_guide: unknown; did you mean text_guided"),
        ({"recipe": "zzz"}, r"masking.recipe=zzz: unknown; known: random, tube"),
        ({"mask_ratio": 0.0}, r"masking.mask_ratio=0.0: wanted a share above 0 and below 1"),
        ({"mask_ratio": 1.0}, r"masking.mask_ratio=1.0: wanted a share above 0 and below 1"),
        ({"mask_ratio": 60}, r"masking.mask_ratio=60: wanted"),
        ({"mask_ratio": 0.001}, r"masking.mask_ratio=0.001 hides none of 196 tokens: raise it to at least 0.0051"),
        ({"mask_ratio": 1 - 1e-12}, r"masking.mask_ratio=0.999999999999 hides all of 196 tokens: lower it"),
        ({"visible_ratio": 0.5}, r"masking.visible_ratio=0.5 is more than .*masking.mask_ratio=0.6.*at most 0.4"),
        ({"visible_ratio": -0.1}, r"masking.visible_ratio=-0.1: wanted a share above 0"),
        ({"visible_ratio": 1e-5}, r"masking.visible_ratio=1e-05 leaves no visible token: raise it"),
        ({"decode_ratio": 1.5}, r"model.decode_ratio=1.5: wanted a share above 0 and at most 1"),
        ({"decode_ratio": 1e-5}, r"model.decode_ratio=1e-05 leaves no target among 936 hidden tokens: raise it"),
        ({"temprature": 0.1}, r"masking.options.temprature: unknown; did you mean temperature"),
        ({"temperature": -1}, r"masking.options.temperature=-1: wanted 0, or a number from 1e-6 to 1e6"),
        ({"temperature": "hot"}, r"masking.options.temperature='hot': wanted 0, or a number"),
        ({"rule": "top"}, r"masking.options.rule=top: unknown; did you mean top_k"),
        ({"rule": ["top_k"]}, r"masking.options.rule=\['top_k'\]: unknown"),
        ({"temperature": float("nan")}, r"masking.options.temperature=nan: wanted 0, or"),
        ({"whole_parts": 2}, r"masking.options.whole_parts=2: wanted a number from 0 to 1, or two"),
        ({"whole_parts": [0, 0.5, 1]}, r"whole_parts=\[0, 0.5, 1\]: wanted a number from 0 to 1, or two: those"),
        ({"whole_parts": [0, -1]}, r"whole_parts=\[0, -1\]: wanted"),
        ({"whole_parts": "late"}, r"whole_parts='late': wanted"),
        ({"scope": "slots"}, r"masking.options.scope=slots: unknown; did you mean slot"),
        ({"scale": "minmax"}, r"masking.options.scale=minmax: unknown; known: rank, raw"),
        ({"sources": "text"}, r"masking.options.sources='text': wanted weights by source name"),
        ({"sources": {}}, r"masking.options.sources=\{\}: wanted weights"),
        ({"sources": {"txt": 1}}, r"masking.options.sources.txt: unknown; did you mean text"),
        ({"sources": {"text": 0}}, r"masking.options.sources.text=0: wanted a weight from 1e-6 to 1e6"),
        ({"sources": {"text": True}}, r"masking.options.sources.text=True: wanted a weight"),
        ({"sources": {"sampler": 1}}, r"masking.options.rule=top_k: the source sampler is learned, .* set bottom_k"),
        ({"temperature": float("inf")}, r"masking.options.temperature=inf: wanted 0, or"),
        ({"temperature": 1e-320}, r"masking.options.temperature=1e-320: wanted 0, or"),
        ({"temperature": False}, r"masking.options.temperature=False: wanted 0, or"),
        ({"temperature": 10**400}, r"masking.options.temperature=10+: wanted 0, or"),
        ({"sources": {"text": float("inf")}}, r"masking.options.sources.text=inf: wanted a weight from"),
        ({"sources": {"text": 1e308, "random": 1e308}}, r"masking.options.sources.text=1e\+308: wanted a weight from"),
        ({"sources": {"text": 1, "random": 1e-320}}, r"masking.options.sources.random=1e-320: wanted a weight from"),
        ({"sources": {"text": 10**400}}, r"masking.options.sources.text=10+: wanted a weight from"),
        ({"sources": {"parts": 1}}, r"masking.options.rule=top_k: the source parts .* no order .*: set stratified"),
        ({"rule": "stratified", "scale": "raw"}, r"sources: text: .* reads the numbers of parts.*: give \{parts: 1\}"),
        ({"recipe": "part_based", "sources": {"parts": 1, "text": 1}}, r"sources: parts, text: .* not mixed"),
        ({"recipe": "part_based", "scope": "tube"}, r"masking.options.scope=tube: .* no mean: set slot or clip"),
        ({"recipe": "part_based", "scale": "rank"}, r"masking.options.scale=rank: the source parts .*: set raw"),
        ({"recipe": "part_based", "temperature": 1}, r"masking.options.temperature=1: the source parts .*: set 0"),
        ({"recipe": "adamae", "rule": "top_k"}, r"rule=top_k: the source sampler is learned"),
        ({"recipe": "adamae", "scale": "rank"}, r"scale=rank: the source sampler is learned, .* or set raw"),
        ({"recipe": "adamae", "temperature": 0}, r"masking.options.temperature=0: the source sampler .* above 0"),
        ({"recipe": "adamae", "sources": {"sampler": 1, "text": 1}}, r"sampler is learned, and is not mixed"),
        ({"recipe": "automae", "rule": "bottom_k"}, r"rule=bottom_k: the source generator is learned, .* set top_k"),
        ({"recipe": "automae", "temperature": 0}, r"temperature=0: the source generator .* above 0"),
        ({"recipe": "automae", "rate": 0}, r"masking.options.rate=0: wanted a number from 0.001 to 1000, such as 10"),
        ({"recipe": "automae", "rate": 1e30}, r"masking.options.rate=1e\+30: wanted a number from 0.001 to 1000"),
        ({"recipe": "adamae", "rate": "10"}, r"masking.options.rate='10': wanted a number from 0.001 to 1000"),
        ({"rate": 10}, r"masking.options.rate=10: wanted none: nothing of this mask is learned"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(arguments: dict[str, Any], message: str) -> None:
    settings = {"recipe": "text_guided", "mask_ratio": 0.6, **arguments}
    with pytest.raises(ValueError, match=message):
        build_masker(settings.pop("recipe"), CLIP, **settings)
