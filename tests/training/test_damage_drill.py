"""The short form of tools/damage_drill.py, and that its evaluation can find fault."""

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
    output = run(1, ["tools/damage_drill.py", "--cases", "100", "--seed", "1"], seconds=1500, anew=True).stdout
    total = next(line for line in output.splitlines() if line.startswith("| all |"))
    assert total.split("|")[3].strip() == "100" and total.endswith("| 0 |"), output


RUN = "exit code of check: 0\n{}exit code of pretrain: {}\n"


@pytest.mark.parametrize(
    ("code", "output", "wrong"),
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
def test_the_evaluation_finds_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, output: str, wrong: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    from damage.cases import FAILED, Case, evaluate
    from damage.reference import Reference

    (tmp_path / "output.txt").write_text(output)
    outcome, why = evaluate(Case(0, "run", "cut", ["plan.json"]), code, tmp_path, Reference("", {}, {}))
    assert outcome == FAILED and wrong in why


def test_the_evaluation_sees_other_weights_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    from damage import reference
    from damage.cases import ANOTHER, FAILED, LEFT_OUT, SAME, UNSEEN, Case, evaluate

    last = tmp_path / "run" / "checkpoints" / f"step-{reference.STEPS:08d}"
    last.mkdir(parents=True)
    file = last / "state-00000-of-00001.safetensors"
    save_tensors({f"a.{part}": torch.ones(2) for part in ("weight", "exp_avg", "exp_avg_sq")}, file)
    facts = {
        "progress": {"step": reference.STEPS, "skipped": {}},
        "files": [{"name": file.name, "bytes": file.stat().st_size}],
    }
    (last / "manifest.json").write_text(manifest.to_json(facts))
    rows = [{"step": step, "loss": 1.0, "data_digest": f"2-{step}"} for step in range(1, reference.STEPS + 1)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "clips.json").write_text('{"0/a": "digest", "0/b": "other"}')
    (tmp_path / "output.txt").write_text("exit code of pretrain: 0\n")
    expected = reference.read_reference(tmp_path)

    case = Case(0, "shards", "bit", ["0.tar"], anew=True)

    def outcome(weights: str, clips: dict) -> tuple[str, str]:
        return evaluate(case, 0, tmp_path, reference.Reference(weights, expected.steps, clips))

    assert outcome(expected.weights, expected.clips) == (SAME, "")
    assert outcome("others", expected.clips)[0] == FAILED
    assert "0/b is another, and is not named" in outcome("others", {"0/a": "digest", "0/b": "was"})[1]
    assert "0/c is not used" in outcome("others", {**expected.clips, "0/c": "was"})[1]
    (tmp_path / "run" / "skipped.jsonl").write_text('{"step": 5, "key": "0/b", "reason": "damaged", "detail": ""}\n')
    assert outcome("others", {"0/a": "digest", "0/b": "was"}) == (LEFT_OUT, "")
    (tmp_path / "run" / "skipped.jsonl").unlink()
    output = "0.tar: its size or its ends are not those of the file that was indexed\nexit code of pretrain: 0\n"
    (tmp_path / "output.txt").write_text(output)
    assert outcome("others", expected.clips) == (ANOTHER, "")
    assert outcome("others", {"0/a": "digest", "0/b": "was"}) == (UNSEEN, "")
    assert "0/c is not used" in outcome("others", {**expected.clips, "0/c": "was"})[1]
