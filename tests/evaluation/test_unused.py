"""Keys that have no effect in a command are said, and a group's column where nothing has columns is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tgm_scale import cli
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import render_clip
from tgm_scale.evaluation.settings import FrozenConfig
from tgm_scale.evaluation.unused import Part, unused

BASE = {"run": {"dir": "x"}, "data": {"train": "a", "test": "b"}, "encoder": {"checkpoint": "random"}}


@pytest.mark.parametrize(
    ("part", "given", "said"),
    [
        ("neighbours", {}, []),
        ("neighbours", {"neighbours": {"k": 3}, "probe": {"pool": "mean"}}, []),
        ("neighbours", {"probe": {"baselines": True}}, ["by tgm-scale knn: probe.baselines"]),
        ("probe", {"neighbours": {"k": 3}}, ["by tgm-scale probe: neighbours.k"]),
        ("probe", {"probe": {"heads": 4, "pool": "2x2"}}, ["by probe.head=linear: probe.heads"]),
        ("probe", {"probe": {"heads": 4, "head": "attentive"}}, []),
        ("retrieve", {"data": {"test": "b"}}, []),
        ("retrieve", {"data": BASE["data"] | {"share": 0.5}}, ["by tgm-scale retrieve: data.train, data.share"]),
        (
            "retrieve",
            {"data": {"test": "b"}, "retrieve": {"templates": ["{}"]}},
            ["without retrieve.zero_shot=true: retrieve.templates"],
        ),
        ("retrieve", {"data": {"test": "b"}, "retrieve": {"templates": ["{}"], "zero_shot": True}}, []),
        (
            "neighbours",
            {"data": BASE["data"] | {"sampling": "segments", "stride": 4}},
            ["by data.sampling=segments: data.stride"],
        ),
        ("neighbours", {"encoder": {"checkpoint": "random", "initialisation": "local"}}, []),
        (
            "neighbours",
            {"encoder": {"checkpoint": "r", "initialisation": "local"}},
            ["of a checkpoint, but of encoder.checkpoint=random: encoder.initialisation"],
        ),
    ],
)
def test_keys_that_have_no_effect(part: Part, given: dict, said: list[str]) -> None:
    config = FrozenConfig.model_validate(BASE | given)
    assert unused(config, part) == [f"not used {line}" for line in said]


def test_a_command_says_them_and_refuses_a_group_where_there_are_no_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        for clip in range(4):
            file = tmp_path / part / "ab"[clip % 2] / f"{clip}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_video(render_clip(clip + 4 * (part == "test")).frames, 12))
    command = ["knn", f"run.dir={tmp_path}/run", f"data.train={tmp_path}/train", f"data.test={tmp_path}/test",
               "encoder.checkpoint=random", "encoder.size=tiny", "encoder.frames=4", "encoder.image_size=32",
               "data.workers=0", "neighbours.k=1", "probe.baselines=true"]  # fmt: skip
    assert cli.main([*command, "data.group=performer"]) == 2
    refused = capsys.readouterr().err
    assert "data.group=performer: a column of a list" in refused and "leave it out" in refused
    assert cli.main(command) == 0
    assert "not used by tgm-scale knn: probe.baselines\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/results.json").read_text())["facts"]["classes"] == 2
