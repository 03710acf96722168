"""Keys of a training that were set and have no effect are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.assembly.unused import unused_in_finetuning, unused_in_pretraining
from tgm_scale.config import Config
from tgm_scale.evaluation.settings import FinetuneConfig, load_any
from tgm_scale.runtime.distributed import find_process

CONFIGS = Path(__file__).parents[2] / "configs"
PIXELS = "objective.terms={pixels: 1}"
TUBE = "by masks of tube and 1 pixels: "


def said(*overrides: str) -> list[str]:
    plain = ["masking={recipe: tube, mask_ratio: 0.6}", "guidance={}", "data.stride=4"]
    config = load_any(str(CONFIGS / "debug.yaml"), [*plain, *overrides])
    assert isinstance(config, Config)
    plan = plan_pretraining(config, find_process()).for_samples(config.train, 100)
    lines = unused_in_pretraining(config, plan)
    return [line.removeprefix("not used ") for line in lines]


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ([PIXELS], []),
        ([PIXELS, "guidance.towers=small"], [f"{TUBE}guidance.towers"]),
        ([PIXELS, "guidance.scorer=raw", "guidance.flow=raft.pth"], [f"{TUBE}guidance.scorer, guidance.flow"]),
        ([PIXELS, "guidance.cached=true", "objective.queue=3"], [f"{TUBE}guidance.cached, objective.queue"]),
        ([PIXELS, "guidance={compile: true, own_stream: true}"], [f"{TUBE}guidance.compile, guidance.own_stream"]),
        ([PIXELS, "objective.contrastive_batch=2"], [f"{TUBE}objective.contrastive_batch"]),
        ([PIXELS, "model.decode_ratio=0.5", "model.decoder_attention=cross", "objective.normalise_by=clip"], []),
        (
            ["objective.terms={contrast: 1}", "guidance={towers: small, scorer: raw, own_stream: true}",
             "objective.contrastive_batch=2", "objective.normalise_by=clip", "model.decode_ratio=0.5"],
            ["by masks of tube and 1 contrast: guidance.scorer, model.decode_ratio, objective.normalise_by"],
        ),
        (["objective.terms={nearest: 1}", "guidance.towers=small", "objective.queue=3"], []),
        (
            ["objective.terms={align: 1}", "guidance={towers: small, scorer: raw, captions: mean}"],
            ["by masks of tube and 1 align: guidance.captions"],
        ),
        (
            [PIXELS, "masking.recipe=text_guided",
             "guidance={towers: small, scorer: raw, cached: true, captions: mean}"],
            [],
        ),
        (
            [PIXELS, "masking.recipe=attention", "guidance={towers: small, scorer: raw, resolution: 32}"],
            ["by masks of attention and 1 pixels: guidance.scorer"],
        ),
        ([PIXELS, "masking.recipe=flow_guided", "guidance={flow: raft.pth, own_stream: true}"], []),
        (
            [PIXELS, "masking.recipe=flow_guided", "guidance.own_stream=true"],
            ["by masks of flow_guided and 1 pixels: guidance.own_stream"],
        ),
        ([PIXELS, "data.sampling=segments", "data.stride=2"], ["by data.sampling=segments: data.stride"]),
        ([PIXELS, "data.stride=2"], []),
        (
            [PIXELS, "masking.options={targets: running_cell, whole_parts: 1, temperature: 1}"],
            [f"{TUBE}masking.options.targets, masking.options.whole_parts"],
        ),
        ([PIXELS, "masking.options={targets: running_cell}", "model.decode_ratio=0.5"], []),
        (
            [PIXELS, "masking={recipe: part_based, options: {whole_parts: 1}}", "guidance.towers=small"],
            [],
        ),
        ([PIXELS, "data.root=videos"], ["where nothing is a list: data.root"]),
        ([PIXELS, "data.root=videos", "data.shards=[shards, list.csv]", "data.synthetic=null"], []),
        ([PIXELS, "knn={train: a, test: b, k: 3}"], ["without knn.every=STEPS: knn.train, knn.test, knn.k"]),
        ([PIXELS, "knn={train: a, test: b, k: 3, every: 4}"], []),
        (
            [PIXELS, "train.steps=9", "knn={train: a, test: b, every: 10}", "log.pictures_every=9"],
            ["in a run of 9 steps: knn.every"],
        ),
        (
            [PIXELS, "knn={train: a, test: b, label: c}", "log.pictures_every=5"],
            ["without knn.every=STEPS: knn.train"],
        ),
    ],
)  # fmt: skip
def test_keys_of_a_pretraining(given: list[str], lines: list[str]) -> None:
    assert said(*given) == lines


def test_keys_of_a_finetuning() -> None:
    given = ["data={train: a, test: b, sampling: segments, stride: 2}", "model.decoder_depth=2"]
    config = load_any(str(CONFIGS / "finetune_few_clips.yaml"), given)
    assert isinstance(config, FinetuneConfig)
    assert unused_in_finetuning(config.data, config.model) == [
        "not used by finetuning: model.decoder_depth",
        "not used by data.sampling=segments: data.stride",
    ]
