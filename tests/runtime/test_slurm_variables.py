"""Node lists and ranks as SLURM's variables give them; tests/slurm compares with `scontrol show hostnames`."""

from __future__ import annotations

import pytest

from tgm_scale.runtime.launch import node_names, node_of


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("node1", ["node1"]),
        ("gpu[08-10,12],login1", ["gpu08", "gpu09", "gpu10", "gpu12", "login1"]),
        ("r[1-2]n[3,5]", ["r1n3", "r1n5", "r2n3", "r2n5"]),
        ("a-[098-101]", ["a-098", "a-099", "a-100", "a-101"]),
    ],
)
def test_node_lists(nodelist: str, names: list[str]) -> None:
    assert node_names(nodelist) == names


def test_ranks_lie_in_blocks_on_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_TASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[1-3]")
    assert [node_of(rank, 6) for rank in range(6)] == ["gpu1", "gpu1", "gpu2", "gpu2", "gpu3", "gpu3"]
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "8(x2),4")
    assert [node_of(rank, 20) for rank in (0, 7, 8, 15, 16, 19)] == ["gpu1", "gpu1", "gpu2", "gpu2", "gpu3", "gpu3"]
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1,2,1")
    assert [node_of(rank, 4) for rank in range(4)] == ["gpu1", "gpu2", "gpu2", "gpu3"], "the step's, not the job's"
    monkeypatch.delenv("SLURM_JOB_NODELIST")
    assert node_of(4, 6) == "the host of rank 4"
