"""One front door: every command of `tgm-scale` is listed, suggested, and the same by its file in tools/."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tgm_scale import cli
from tgm_scale.commands import table
from tgm_scale.commands.command import part_names
from tgm_scale.data.video.encode import encode_video
from tgm_scale.runtime import command

ROOT = Path(__file__).parents[2]
FORMER = {one.former: one.words for one in table.COMMANDS.values() if one.former}


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, env=variables, capture_output=True, text=True, timeout=100)


def test_the_help_lists_every_command_in_a_line_of_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for group, commands in table.GROUPS.items():
        start = lines.index(f"{group}:") + 1
        listed = [line.split("  ")[1] for line in lines[start : start + len(commands)]]
        assert listed == [one.words for one in commands]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("family", sorted(table.FAMILIES))
def test_a_family_lists_its_commands(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([family, "--help"]) == 0
    asked = capsys.readouterr().out
    assert cli.main([family]) == 2
    missing = capsys.readouterr().err
    for words in table.COMMANDS:
        for said in (asked, missing):
            assert (f"\n  {words} " in said) == words.startswith(f"{family} ")


@pytest.mark.parametrize("words", [words for words in table.COMMANDS if words.startswith("benchmark ")])
def test_the_help_of_a_benchmark_has_its_own_examples_alone(words: str) -> None:
    lines = [line for line in table.COMMANDS[words].examples.splitlines() if "tgm-scale benchmark" in line]
    assert lines and all(f"{line} ".startswith(f"  tgm-scale {words} ") for line in lines)


@pytest.mark.parametrize("words", table.COMMANDS)
def test_the_help_of_each_names_the_front_door(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words.split(), "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: tgm-scale {words} ") and "python tools/" not in said
    examples = table.COMMANDS[words].examples
    assert examples is None or (f"tgm-scale {words}" in examples and examples.strip() in said)


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("pretrian --config debug", "pretrain"),
        ("PRETRAIN", "pretrain"),
        ("finetunes", "finetune"),
        ("shards mkae --videos x", "shards make"),
        ("shard check", "shards check"),
        ("shards-caption", "shards caption"),
        ("mask evaluate", "masks evaluate"),
        ("benchmarks loader", "benchmark loader"),
        ("make_shards", "shards make"),
        ("tools/cache_relevance.py --shards x", "shards cache"),
        ("convert_checkpoint.py", "convert"),
        ("tune_deepspeed", "tune"),
        ("plan_run", "plan"),
        ("evaluate", "masks evaluate"),
        ("prob\x1b[31me", "probe"),
    ],
)
def test_a_misspelled_command_is_told_the_nearest(
    typed: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(typed.split(" ")) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "\x1b" not in said.err
    assert said.err.partition("; nearest: ")[2].split("; tgm-scale")[0].split(", ")[0] == nearest


@pytest.mark.parametrize(
    "typed", ["", "--config debug", "zzzzzz", "-", "--", "shards zzzzzz", "shards --videos x", "shards -"]
)
def test_what_is_near_no_command_is_told_where_they_are_listed(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(typed.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("tgm-scale: ") and "; nearest:" not in said
    assert "--help" in said or "shards make" in said


def test_a_foreseen_end_is_a_line_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    def full() -> int:
        raise OSError(28, "No space left on device")

    assert command.exit_code("tgm-scale pretrain", interrupted, "") == 130
    assert command.exit_code("tgm-scale tune", full, "finished trials are kept") == 1
    assert capsys.readouterr().err == (
        "\ntgm-scale pretrain: interrupted\n"
        "tgm-scale tune: [Errno 28] No space left on device; finished trials are kept\n"
    )


@pytest.mark.parametrize("name", FORMER)
def test_a_file_of_tools_is_its_command(name: str) -> None:
    source = (ROOT / "tools" / f"{name}.py").read_text()
    assert len(source.splitlines()) <= 8
    done = tool(name, *["loader"] * (name == "benchmark"), "--no-such-option")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"usage: {name}.py "), done.stderr


PAGES = [
    *(page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if page.name != "LOG.md"),
    *[*ROOT.glob("tgm_scale/**/*.py"), *ROOT.glob("configs/*.yaml"), *ROOT.glob("slurm/**/*.sh")],
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_and_messages_name_commands_that_are_there_and_the_front_door(page: Path) -> None:
    text = page.read_text()
    for typed in re.findall(r"(?:^ *|[`(])tgm-scale ([a-z]+(?: [a-z]+)?)", text, re.MULTILINE):
        assert table.find(typed.split())[0] or (typed in table.FAMILIES and " " not in typed), typed
    calls = r"(?m)^(?:share \d+|trials) tools/"  # of SLURM's scripts, which run a checkout
    assert not re.findall(rf"tools/(?:{'|'.join(FORMER)})\.py", re.sub(calls, "", text))


def test_both_forms_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    done = tool("plan_run", "--config", "debug", "--gpus-per-node", "1")
    assert cli.main(["plan", "--config", "debug", "--gpus-per-node", "1"]) == done.returncode == 0
    assert capsys.readouterr().out == done.stdout
    wrong = tool("plan_run", "--config", "debug", "--nodes", "0")
    assert cli.main(["plan", "--config", "debug", "--nodes", "0"]) == wrong.returncode == 2
    assert wrong.stderr == "plan_run: --nodes 0: wanted more than 0\n"
    assert capsys.readouterr().err == "tgm-scale plan: --nodes 0: wanted more than 0\n"


def test_both_forms_make_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    rows = []
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (20, 6, 8, 3)).astype(np.uint8)
        (videos / f"v{number}.mp4").write_bytes(encode_video(noise.repeat(8, 1).repeat(8, 2), fps=10))
        span = {"Start_timestamp": "00:00:00.000", "End_timestamp": "00:00:01.500"}
        rows.append(json.dumps({"YoutubeID": f"v{number}", **span, "Caption": f"clip {number}"}))
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    given = ["--annotations", str(tmp_path / "a.jsonl"), "--videos", str(videos), "--short-side", "32", "--output"]
    done = tool("make_shards", *given, str(tmp_path / "one"))
    assert done.returncode == cli.main(["shards", "make", *given, str(tmp_path / "other")]) == 0, done.stderr
    assert capsys.readouterr().out == done.stdout and "2 of 2 clips made" in done.stdout
    one, other = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).glob("[0-9r]*")}
        for name in ("one", "other")
    )
    assert "00000.tar" in one and "report.json" in one and one == other  # the catalogue has the times of the files


def test_options_stand_between_overrides_and_words_may_be_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "run.dir=x", "--config", "debug", "train.steps=2"]) == 0
    assert "steps: 2" in capsys.readouterr().out
    for words in (["shards make"], ["shards", "make"]):
        assert cli.main([*words, "--annotations", "a", "--videos", "/nowhere", "--output", "b"]) == 2
        assert "--videos /nowhere: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["help", "shards help", "benchmark help", "help shards"])
def test_help_is_a_word_too(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 0 and capsys.readouterr().out.startswith("usage: tgm-scale ")


def test_help_takes_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("help knn", "help shards make"):
        with pytest.raises(SystemExit) as end:
            cli.main(words.split())
        assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: tgm-scale {words[5:]} [-h]")
    assert cli.main(["help", "pretrian"]) == 2 and "nearest: pretrain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "names", "overrides"),
    [
        ("--recipes tube a.b=1 --clips 1 a.b=2", ["tube"], ["a.b=1", "a.b=2"]),
        ("--scorers value a.b=1 --recipes tube,block a.b=2", ["tube", "block"], ["a.b=1", "a.b=2"]),
        ("--recipes tube a.b=1 --recipes random", ["tube", "random"], ["a.b=1"]),
        ("a.b=1 --clips 2 a.b=2", ["all"], ["a.b=1", "a.b=2"]),
    ],
)
def test_overrides_among_lists_of_names_stay_in_order(words: str, names: list[str], overrides: list[str]) -> None:
    parser = argparse.ArgumentParser()
    table.COMMANDS["masks evaluate"].add_arguments(parser)
    options = parser.parse_intermixed_args(given := ["--videos", "x", *words.split()])
    options.given = given
    part_names(options, {"recipes": ["all"], "scorers": ["all"]})
    assert options.recipes == names and options.overrides == overrides


def test_a_list_of_no_names_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["masks", "evaluate", "--videos", "x", "--recipes", ","]) == 2
    assert "--recipes ,: wanted names, or all" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "plan --config debug --tflops",
        "shards check --shards x --max-broken",
        "shards cache --every",
        "tune --keep-free",
    ],
)
def test_what_is_no_number_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("nan", "inf", "x"):
        with pytest.raises(SystemExit) as end:
            cli.main([*words.split(), text])
        assert end.value.code == 2 and f"wanted a number, found '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["pretrain", "knn", "study", "plan", "benchmark step", "benchmark ranks"])
def test_of_two_configurations_none_is_left_out_in_silence(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words.split(), "--config", "a.yaml", "--config=b.yaml"])
    assert stopped.value.code == 2
    assert "argument --config: given twice, a.yaml and b.yaml: wanted one\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "option"),
    [("check", "shards"), ("caption", "shards"), ("cache", "shards"), ("make", "annotations")],
)
def test_of_two_sources_none_is_left_out_in_silence(
    words: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["shards", words, f"--{option}", "a", f"--{option}=b"])
    assert stopped.value.code == 2
    assert f"argument --{option}: given twice, a and b: wanted one\n" in capsys.readouterr().err
