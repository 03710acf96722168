"""The project as it is when it was installed: configurations by name, its own commit, bounds that hold the pins."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

import tgm_scale
from tgm_scale.commands import table
from tgm_scale.config import CONFIGS, packaged, read_tree
from tgm_scale.data.video.encode import encode_video
from tgm_scale.runs import environment

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel puts into site-packages, inside somebody's own repository."""
    project = tmp_path_factory.mktemp("project")
    site = project / ".venv" / "site-packages"
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    (project / "setup.cfg").write_text("[metadata]\nname = theirs\n")
    build = ["build", "--build-base", str(project / "build"), "--build-lib", str(site)]
    subprocess.run([sys.executable, "setup.py", "-q", *build], check=True, cwd=ROOT, capture_output=True, timeout=100)
    return site


def run(site: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=variables,
        cwd=cwd or site.parents[1],
        capture_output=True,
        text=True,
        timeout=100,
    )


_ALL_HELP = """
import contextlib, io, sys
from tgm_scale import cli
from tgm_scale.commands import table
assert cli.__file__.startswith(sys.argv[1]), cli.__file__
for words in ["", *table.FAMILIES, *table.COMMANDS]:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        cli.main([*words.split(), "--help"])
    assert said.getvalue().startswith("usage: tgm-scale "), words
    heavy = {"torch", "transformers", "deepspeed", "numpy", "av", "pydantic"} & set(sys.modules)
    assert not heavy, f"tgm-scale {words} --help imports {heavy}"
    print(words)
"""


@pytest.mark.parametrize("name", ["debug", "debug.yaml", "configs/debug.yaml", "pretrain_vitb"])
def test_a_wheel_finds_its_configurations_by_name_from_any_folder(installed: Path, name: str, tmp_path: Path) -> None:
    ended = run(installed, "-m", "tgm_scale", "config", "--config", name, "--key", "run.dir", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, f"runs/{Path(name).stem}\n"), ended.stderr


def test_a_wheel_finds_the_deepspeed_files_that_its_configurations_name(installed: Path) -> None:
    code = (
        "import tgm_scale.config as c; from tgm_scale.engine.plan import not_used;"
        "print(c.__file__); [not_used(c.load(n).deepspeed.config) for n in ('pretrain_vitb', 'pretrain_vitg')];"
        "not_used('deepspeed/zero1')"
    )
    ended = run(installed, "-c", code)
    assert ended.returncode == 0 and ended.stdout.startswith(str(installed)), ended.stderr


def test_a_wheel_explains_every_command_without_torch(installed: Path, tmp_path: Path) -> None:
    ended = run(installed, "-c", _ALL_HELP, str(installed), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert set(table.COMMANDS) < set(ended.stdout.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_makes_shards_and_checks_them_from_any_folder(installed: Path, tmp_path: Path) -> None:
    rows = ["file,caption"]
    (tmp_path / "videos").mkdir()
    for number in range(2):
        frames = np.full((12, 32, 48, 3), 60 + 90 * number, np.uint8)
        (tmp_path / "videos" / f"v{number}.mp4").write_bytes(encode_video(frames, fps=10))
        rows.append(f"v{number}.mp4,a grey field {number}")
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    tgm_scale = ("-m", "tgm_scale", "shards")
    given = ("--annotations", "a.csv", "--videos", "videos", "--output", "out", "--short-side", "32", "--workers", "1")
    made = run(installed, *tgm_scale, "make", *given, cwd=tmp_path)
    assert made.returncode == 0 and "2 of 2 clips made" in made.stdout, made.stderr
    checked = run(installed, *tgm_scale, "check", "--shards", "out", cwd=tmp_path)
    assert checked.returncode == 0 and "2 samples in 1 shards" in checked.stdout, checked.stdout + checked.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "out", "videos"]


def test_a_wheel_says_its_version_and_is_typed(installed: Path) -> None:
    ended = run(installed, "-m", "tgm_scale", "--version")
    assert ended.stdout == f"tgm-scale {tgm_scale.__version__}\n"
    assert (installed / "tgm_scale" / "py.typed").is_file()


def test_a_commit_is_that_of_our_own_checkout(installed: Path) -> None:
    code = "import json; from tgm_scale.runs.environment import of_this_start; print(json.dumps(of_this_start()))"
    theirs = json.loads(run(installed, "-c", code).stdout)
    assert theirs["git"] is None and theirs["git_dirty"] is None
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
        assert environment.of_this_start()["git"] == head.strip()


def test_a_file_of_the_users_own_comes_before_a_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debug").mkdir()  # a folder is no file
    assert packaged("debug", ".yaml") == CONFIGS / "debug.yaml"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "debug.yaml").write_text("run: {dir: mine}")
    assert read_tree("configs/debug.yaml") == {"run": {"dir": "mine"}}
    for nowhere in ("debugg", "../debug", "configs", "/configs/debug.yaml", "configs/../debug"):
        with pytest.raises(ValueError, match=r"a folder|no such file; packaged: debug, demo, "):
            read_tree(nowhere)
    with pytest.raises(ValueError, match=r"; did you mean pretrain_vitl\?$"):
        read_tree("configs/pretrain_vit_l.yaml")
    with pytest.raises(ValueError, match=r", study/terms, .*; did you mean study/terms\?$"):
        read_tree("terms")


def requirements() -> dict[str, Requirement]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].split("\n")
    return {one.name: one for one in map(Requirement, filter(None, lines))}


def test_every_requirement_has_a_lower_bound_and_takes_the_pinned_version() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().splitlines() if "==" in line
    )
    for name, requirement in requirements().items():
        assert any(part.operator == ">=" for part in requirement.specifier), f"{name} has no lower bound"
        assert name not in pins or requirement.specifier.contains(pins[name]), name


def test_the_page_on_the_index_has_no_link_into_a_checkout(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)],
        check=True,
        cwd=ROOT,
        capture_output=True,
        timeout=100,
    )
    text = (tmp_path / "tgm_scale.egg-info" / "PKG-INFO").read_text()
    assert "## Two commands" in text and "](docs/" not in text and "![" not in text
