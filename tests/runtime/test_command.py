"""Exit codes of trouble with files: whether another start would meet it again."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tgm_scale import cli
from tgm_scale.config import load, to_yaml
from tgm_scale.runtime.command import FAILED, USER_MISTAKE, code_of, exit_code


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x"), USER_MISTAKE),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), USER_MISTAKE),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), USER_MISTAKE),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), USER_MISTAKE),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), USER_MISTAKE),
        (OSError(errno.ESTALE, "Stale file handle", "x"), FAILED),
        (OSError(errno.ENOSPC, "No space left on device", "x"), FAILED),
        (PermissionError("a server said 403"), FAILED),
    ],
)
def test_what_lasts_is_a_users_mistake(trouble: OSError, code: int) -> None:
    def run() -> int:
        raise trouble

    assert code_of(trouble) == exit_code("tool", run) == code


def test_the_command_names_a_file_that_lasts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load("debug", []).model_dump(mode="json")))
    (tmp_path / "plan.json").write_text('{"steps": 1, "world_size": 1}')
    (tmp_path / "environment.jsonl").mkdir()
    assert cli.main(["status", str(tmp_path)]) == USER_MISTAKE
    assert "environment.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "x"])
def test_a_link_to_nothing_is_named_wherever_it_is_met(
    tmp_path: Path, below: str, capsys: pytest.CaptureFixture
) -> None:
    link = tmp_path / "dang"
    link.symlink_to(tmp_path / "nowhere")

    def make() -> int:
        (link / below).mkdir(parents=True, exist_ok=True)
        return 0

    def write() -> int:
        (link / below / "file").write_text("")
        return 0

    for run in (make, write):
        assert exit_code("tool", run, "the same command resumes") == USER_MISTAKE
        said = capsys.readouterr().err
        assert said == f"tool: {link}: a link to nothing: {tmp_path}/nowhere is not there: make it, or name another\n"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["benchmark", "growth", "--output", ""], "--output"),
        (["benchmark", "growth", "--output="], "--output"),
        (["status", ""], "RUN"),
        (["check", ""], "RUN"),
        (["report", "a", ""], "RUN"),
        (["compare", "", "a"], "RUN"),
        (["convert", "", "a", "--to", "timm"], "INPUT"),
        (["pretrain", "--config", ""], "--config"),
        (["pretrain", "--config", "debug", ""], "section.key=value"),
        (["shards", "check", "--shards", ""], "--shards"),
        (["masks", "evaluate", "--videos", "a", "--captions", ""], "--captions"),
    ],
)
def test_an_empty_text_is_not_the_current_folder(words: list[str], option: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"argument {option}: found '', as of a variable that is not set; wanted a value")


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["pretrain", "--confg", "debug"], "; --confg is not known; nearest: --config; such as"),
        (["pretrain", "--confg=debug"], "; --confg is not known; nearest: --config; such as"),
        (
            ["shards", "make", "--anotations", "a", "--videos", "b", "--output", "c"],
            "; nearest: --annotations; such as",
        ),
        (["convert", "a", "b", "--to", "hugginface"], "; nearest: huggingface"),
        (["convert", "a", "b", "--to=safetensor"], "; nearest: safetensors"),
        (["plan", "--clip", "5"], "unrecognized arguments: --clip; nearest: --clips, --clips-per-gpu; keys"),
    ],
)
def test_the_nearest_option_or_value_is_named(words: list[str], near: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert near in capsys.readouterr().err


def test_an_option_that_is_only_missing_has_no_other_beside_it(capsys: pytest.CaptureFixture) -> None:
    for words in (["pretrain", "run.dir=runs/x"], ["shards", "make", "--videos", "a", "--output", "b"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(words)
        said = capsys.readouterr().err
        assert "are required: " in said and "nearest" not in said and "is not known" not in said


def test_the_module_that_is_the_command_runs_nothing_when_it_is_imported() -> None:
    """In a process of its own, which the command would end."""
    words = [sys.executable, "-c", "import tgm_scale.__main__; print('imported')"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\n", "")
