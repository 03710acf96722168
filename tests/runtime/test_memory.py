"""Free memory is the host's, or the control group's where that is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale.runtime import memory

MEMINFO = (
    "MemTotal:       24684000 kB\nMemFree:         1000000 kB\nMemAvailable:   10000000 kB\nHugePages_Total:       0\n"
)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slurm/job_7/step_0\n")
    return tmp_path / "proc"


def group(folder: Path, limit: str, taken: int, droppable: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon {taken - droppable}\ninactive_file {droppable}\n")


def test_without_a_limit_the_host_counts(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    assert memory.total_bytes(proc) == 24684000 * 1024
    assert memory.free_bytes(proc, groups) == 10000000 * 1024
    group(groups / "slurm" / "job_7" / "step_0", "max", 5 << 30, 0)
    assert memory.free_bytes(proc, groups) == 10000000 * 1024


def test_the_jobs_limit_counts_where_it_is_less(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    group(groups / "slurm" / "job_7" / "step_0", "max", 5 << 30, 0)
    group(groups / "slurm" / "job_7", str(8 << 30), 6 << 30, 1 << 30)
    assert memory.free_bytes(proc, groups) == 3 << 30


def test_this_process_has_some(tmp_path: Path) -> None:
    assert 0 < memory.free_bytes() < memory.total_bytes()
