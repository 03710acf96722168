"""What the two passes of the cached contrast cost at ZeRO-3: after each change of pass DeepSpeed drops the order of
layers that it has recorded, and fetches each layer's weights when it is called until it has recorded the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import run


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    out = tmp_path_factory.mktemp("prefetch") / "shares.json"
    run(1, [str(Path(__file__).with_name("prefetch_worker.py")), str(out)])
    return json.loads(out.read_text())


def test_one_pass_fetches_every_layer_ahead_and_two_lose_some(shares: dict[str, float]) -> None:
    assert shares.pop("2 micro steps, one pass") == 1.0
    two = [shares[f"{micro_steps} micro steps, two passes"] for micro_steps in (2, 4, 8)]
    assert two == pytest.approx([0.23, 0.61, 0.81], abs=0.01), "docs/GPU.md has these"
