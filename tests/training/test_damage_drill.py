"""The short form of tools/damage_drill.py, and that its judge can find fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launch import ROOT, run

from tgm_scale.checkpoints import manifest
from tgm_scale.runtime.tensors import save_tensors


@pytest.mark.slow
def test_damage_costs_the_part_that_is_damaged() -> None:
    said = run(1, ["tools/damage_drill.py", "--cases", "100", "--seed", "1"], seconds=1500).stdout
    total = next(line for line in said.splitlines() if line.startswith("| all |"))
    assert total.split("|")[3].strip() == "100" and total.endswith("| 0 |"), said


RUN = "exit code of check: 0\n{}exit code of pretrain: {}\n"


@pytest.mark.parametrize(
    ("code", "said", "wrong"),
    [
        (-999, "", "hangs"),
        (-11, "", "exit code -11"),
        (1, RUN.format("tgm-scale pretrain: stopped: plan.json\n", 1), "exit code 1"),
        (1, "Traceback (most recent call last)\nKeyError: 'a'\n", "KeyError"),
        (2, RUN.format("tgm-scale pretrain: something is wrong\n", 2), "not named"),
        (2, RUN.format("tgm-scale pretrain: plan.json is damaged\n", 2), "`check` found nothing"),
        (0, RUN.format("", 0), "without a whole run"),
    ],
)
def test_the_judge_finds_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str, wrong: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    from damage.ground import Truth
    from damage.judge import FAILED, judged

    (tmp_path / "said.txt").write_text(said)
    outcome, why = judged("run", "cut", ["plan.json"], False, code, tmp_path, Truth("", {}, {}))
    assert outcome == FAILED and wrong in why


def test_the_judge_sees_other_weights_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    from damage import ground
    from damage.judge import ANOTHER, FAILED, LEFT_OUT, SAME, UNSEEN, judged

    last = tmp_path / "run" / "checkpoints" / f"step-{ground.STEPS:08d}"
    last.mkdir(parents=True)
    file = last / "state-00000-of-00001.safetensors"
    save_tensors({f"a.{part}": torch.ones(2) for part in ("weight", "exp_avg", "exp_avg_sq")}, file)
    facts = {
        "progress": {"step": ground.STEPS, "skipped": {}},
        "files": [{"name": file.name, "bytes": file.stat().st_size}],
    }
    (last / "manifest.json").write_text(manifest.written(facts))
    rows = [{"step": step, "loss": 1.0, "data_digest": f"2-{step}"} for step in range(1, ground.STEPS + 1)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "clips.json").write_text('{"0/a": "digest", "0/b": "other"}')
    (tmp_path / "said.txt").write_text("exit code of pretrain: 0\n")
    truth = ground.read_truth(tmp_path)

    def outcome(weights: str, clips: dict) -> tuple[str, str]:
        return judged("shards", "bit", ["0.tar"], True, 0, tmp_path, ground.Truth(weights, truth.steps, clips))

    assert outcome(truth.weights, truth.clips) == (SAME, "")
    assert outcome("others", truth.clips)[0] == FAILED
    assert "0/b is another, and is not named" in outcome("others", {"0/a": "digest", "0/b": "was"})[1]
    assert "0/c is not used" in outcome("others", {**truth.clips, "0/c": "was"})[1]
    (tmp_path / "run" / "skipped.jsonl").write_text('{"step": 5, "key": "0/b", "reason": "damaged", "detail": ""}\n')
    assert outcome("others", {"0/a": "digest", "0/b": "was"}) == (LEFT_OUT, "")
    (tmp_path / "run" / "skipped.jsonl").unlink()
    said = "0.tar: its size or its ends are not those of the file that was indexed\nexit code of pretrain: 0\n"
    (tmp_path / "said.txt").write_text(said)
    assert outcome("others", truth.clips) == (ANOTHER, "")
    assert outcome("others", {"0/a": "digest", "0/b": "was"}) == (UNSEEN, "")
    assert "0/c is not used" in outcome("others", {**truth.clips, "0/c": "was"})[1]
