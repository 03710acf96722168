"""What this project keeps between two passes, damaged: the file is named, with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tgm_scale.data.building.shard_building import _read_report
from tgm_scale.evaluation.cache import _read
from tgm_scale.runtime.tensors import save_tensors

FACTS = {"names": ["a", "b"], "problems": [{"key": "c", "reason": "empty", "detail": ""}]}
DAMAGED = ["[" * 9999, "[]", "{", json.dumps({**FACTS, "names": "ab"}), json.dumps({**FACTS, "names": ["a"]}),
           json.dumps({**FACTS, "problems": [{"key": "c"}]})]  # fmt: skip


@pytest.mark.parametrize("number", range(len(DAMAGED)))
def test_rows_of_an_evaluation(tmp_path: Path, number: int) -> None:
    file = tmp_path / "000000.safetensors"
    save_tensors({"rows": torch.ones(2, 3)}, file, {"facts": json.dumps(FACTS)})
    rows, facts = _read(file)
    assert len(rows) == 2 and facts.names == ["a", "b"] and facts.problems[0].reason == "empty"
    save_tensors({"rows": torch.ones(2, 3)}, file, {"facts": DAMAGED[number]})
    with pytest.raises(ValueError, match=r"000000\.safetensors is damaged: delete it"):
        _read(file)
    for tensors, metadata in (({"other": torch.ones(2)}, {"facts": json.dumps(FACTS)}), ({"rows": torch.ones(2)}, {})):
        save_tensors(tensors, file, metadata)
        with pytest.raises(ValueError, match="delete it"):
            _read(file)


@pytest.mark.parametrize(
    "text", ["[" * 9999, "[]", "{}", '{"made": -1, "skipped": []}', '{"made": 1, "skipped": [[1]]}']
)
def test_the_report_of_a_shard(tmp_path: Path, text: str) -> None:
    file = tmp_path / "00000.report.json"
    file.write_text('{"made": 1, "skipped": [["key", "reason", "detail"]]}')
    assert _read_report(file).made == 1
    file.write_text(text)
    with pytest.raises(ValueError, match=r"00000\.report\.json is damaged: delete it"):
        _read_report(file)
