"""Host memory: total, available to this process, peak of a process."""

from __future__ import annotations

from pathlib import Path


def total_bytes(proc: Path = Path("/proc")) -> int:
    return _of_host(proc)["MemTotal"]


def free_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the available memory of the host, or of the process's control group (a SLURM job's, a container's) if
    less.

    Control groups of version 2; without them, or with version 1, only the host's memory counts."""
    free = _of_host(proc)["MemAvailable"]
    own = next(
        (
            line[3:]
            for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
            if line[:3] == "0::"
        ),
        "/",
    )
    folder = groups / own.strip("/")
    for group in (folder, *folder.parents):
        if group == groups.parent:
            break
        limit = group / "memory.max"
        if limit.is_file() and (most := limit.read_text(encoding="utf-8").strip()) != "max":
            free = min(free, int(most) - _taken(group))
    return free


def peak_resident_bytes(pid: int | str = "self") -> int:
    """Return the peak memory of a process so far, shared libraries included; 0 for one that has ended."""
    try:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM")), 0)


def _taken(group: Path) -> int:
    """Return the bytes in a control group that cannot be reclaimed: it can drop unused file pages."""
    rows = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    return int((group / "memory.current").read_text(encoding="utf-8")) - int(rows.get("inactive_file", 0))


def _of_host(proc: Path) -> dict[str, int]:
    rows = [line.split() for line in (proc / "meminfo").read_text(encoding="utf-8").splitlines()]
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}
