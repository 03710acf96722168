"""The command that `status` and a run's page give to go on with a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_run import made_run, row

from tgm_scale.runs import status


@pytest.mark.parametrize(
    ("hosts", "told"), [(["n1", "n1"], "torchrun --nproc_per_node 2 -m tgm_scale"), (["n1", "n2"], "")]
)
def test_a_command_is_given_for_the_processes_of_one_host(hosts: list[str], told: str, tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", [row(1)])
    for rank, host in enumerate(hosts):
        (folder / "ranks").mkdir(exist_ok=True)
        (folder / "ranks" / f"{rank:05d}").write_text(json.dumps({"host": host, "seconds": {}}))
    found = status.command(folder, status.read_tree(folder), len(hosts), [])
    assert found.startswith(told) and bool(found) == bool(told)
