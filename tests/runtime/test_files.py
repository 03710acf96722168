"""Files that others may read: as their folder and the umask have it."""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch import environment

from tgm_scale.data.access.storage import drop_left_over
from tgm_scale.runtime.files import like, making, readable_as_its_folder


@pytest.mark.parametrize(
    ("folder_mode", "umask", "wanted"),
    [(0o777, 0o022, 0o644), (0o777, 0o077, 0o600), (0o775, 0o002, 0o664), (0o700, 0o022, 0o600), (0o777, 0, 0o666)],
)
def test_the_umask_counts_beside_the_folder(tmp_path: Path, folder_mode: int, umask: int, wanted: int) -> None:
    before = os.umask(umask)
    try:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        folder.chmod(folder_mode)
        file = folder / "state"
        file.touch(0o600)
        readable_as_its_folder(file, folder)
        assert stat.S_IMODE(file.stat().st_mode) == wanted and os.listdir(folder) == ["state"]
    finally:
        os.umask(before)


MAKE = """
import sys, time
from pathlib import Path
from tgm_scale.data.access.storage import drop_left_over
from tgm_scale.runtime.files import like, making
folder, name, other = map(Path, sys.argv[1:])
with making(folder) as made:
    made.mkdir()
    (made / name).touch()
    while not other.exists():
        time.sleep(0.01)
"""


def test_two_that_make_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The second deleted what the first had made so far."""

    def started(name: str, other: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", MAKE, str(folder), name, str(other)], env=environment())

    folder = tmp_path / "corpus"
    first = started("first", tmp_path / "go")
    while not any(tmp_path.glob("corpus.making-*/first")):
        assert first.poll() is None
        time.sleep(0.01)
    assert started("second", tmp_path).wait(60) == 0
    (tmp_path / "go").touch()
    assert first.wait(60) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "go"]
    assert [path.name for path in folder.iterdir()] == ["second"]


def test_what_a_killed_start_left_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, str(tmp_path / "corpus"), "x", str(tmp_path / "go")], env=environment()
    )
    while not any(tmp_path.glob("corpus.making-*/x")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    with making(tmp_path / "corpus") as made:
        made.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_what_an_earlier_process_of_ones_own_number_left_is_removed(tmp_path: Path) -> None:
    """In a container each start may have the same number."""
    left = tmp_path / f"corpus.making-{platform.node()}-{os.getpid()}"
    left.mkdir()
    (left / "00007.tar").touch()
    with making(tmp_path / "corpus") as made:
        made.mkdir()
        (made / "00000.tar").touch()
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["00000.tar"]
    with pytest.raises(FileExistsError), making(tmp_path / "other") as made:
        made.mkdir()
        made.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_left_over_parts_of_another_host_and_folders_stay(tmp_path: Path) -> None:
    host = os.uname().nodename
    mine, others = (tmp_path / f"00000.tar.{name}.999999.7.partial" for name in (host, f"login-{host}"))
    for file in (mine, others):
        file.touch()
    (folder := tmp_path / f"00001.tar.{host}.999999.7.partial").mkdir()
    os.utime(folder, (1, 1))
    drop_left_over(tmp_path, "*")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([others.name, folder.name])


def test_of_a_path_that_is_not_there_the_nearest_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/vitb/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/vitl").mkdir()
    (tmp_path / "list.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert like("runs/vitb2") == "; there is runs/vitb"
    assert like("run/vitb/checkpoints") == "; there is runs/vitb/checkpoints"
    assert like(tmp_path / "lists.csv") == f"; there is {tmp_path}/list.csv"
    # the nearest name has no such folder in it, the second has
    assert like("runs/vitl1/checkpoints") == "; there is runs/vitb/checkpoints"
    for unlike in ("data", "runs/other/checkpoints", "/", "", "list.csv/x", "x" * 300, "a\0b"):
        assert like(unlike) == ""


def test_text_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    """In one of Latin-1 a label in Chinese ended a probe after all its features, and another became damage."""
    made = subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / "en_US")], check=False)
    if made.returncode:
        pytest.skip("a Latin-1 locale cannot be made here")
    source = "import sys; from pathlib import Path; from tgm_scale.runtime.files import replace_file;"
    source += "replace_file(Path(sys.argv[1]), '\\u5c04 caf\\xe9')"
    file, latin = tmp_path / "results.json", {"LOCPATH": str(tmp_path), "LC_ALL": "en_US", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", source, str(file)], env={**environment(), **latin}, check=True)
    assert file.read_bytes().decode() == "\u5c04 caf\xe9"
