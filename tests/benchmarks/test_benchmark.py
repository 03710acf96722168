"""`tgm-scale benchmark` on the smallest corpora: every figure is there, and the ways give the same clips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tgm_scale import cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tgm_scale", "benchmark", *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_loader_is_measured_beside_the_others(tmp_path: Path) -> None:
    few = "--sizes 64x48 --gops 12 --workers 1 --repeats 1,4 --clips 4 --turn 8 --turns 1".split()
    done = run("loader", *few, "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    ways = {row["way"]: row for row in figures["loader"]}
    with_spdl = {"spdl, 0 threads", "spdl, 1 threads"}
    assert [way for way in ways if way not in with_spdl] == [
        "frames",
        "bare",
        "loader, 0 workers",
        "webdataset, 0 workers",
        "loader, 1 workers",
        "webdataset, 1 workers",
    ]
    assert with_spdl <= set(ways) or "without spdl: " in done.stdout
    assert all(row["clips_per_second"] > 0 and row["cpu_ms"] > 0 for row in ways.values())
    assert ways["bare"]["of_bare_cpu"] == ways["bare"]["of_bare_wall"] == 1
    assert [row["repeats"] for row in figures["repeats"]] == ["1", "4"]
    assert "| 64x48 | 12 | bare |" in done.stdout and figures["cores"] >= 1


def test_ranks_share_a_step_and_resuming_costs_the_same(tmp_path: Path) -> None:
    run("order", "--clips", "4000", "--shards", "80", "--ranks", "16", "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    early, late = figures["resume_at_step_10_ms"], figures["resume_at_step_1000000_ms"]
    assert 0.1 < early / late < 10 and figures["state_bytes"] < 100


def test_what_many_ranks_do_is_counted(tmp_path: Path) -> None:
    """Of few ranks here; each opens a file for each of its tensors' files, and rank 0 looks at all of them."""
    run("ranks", "--ranks", "4,16", "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    files = {count: {row["name"]: row["files"] for row in rows} for count, rows in figures["ranks"].items()}
    assert files["16"]["checkpoint written"] == 16 + 1 and files["16"]["heartbeat, twice"] == 32
    assert files["16"]["checkpoint read by all ranks"] == 16 * 16 and files["16"]["metrics of a step"] == 1
    assert figures["growth"]["heartbeat, twice"]["files"] == 1


def test_a_plan_of_shards_takes_no_more_memory_of_more_rows(tmp_path: Path) -> None:
    done = run("plan", "--rows", "40000", "--json", str(tmp_path / "figures.json"))
    passes = json.loads((tmp_path / "figures.json").read_text())["plan"]
    found = [(row["name"], row["rows"], row["clips"]) for row in passes]
    assert found == [("none", 0, 0), ("plan", 4000, 4000), ("clips", 4000, 4000),
                     ("none", 0, 0), ("plan", 40_000, 40_000), ("clips", 40_000, 40_000)]  # fmt: skip
    assert all(row["seconds"] > 0 for row in passes if row["name"] != "none")
    assert all(row["peak_mb"] < passes[0]["peak_mb"] + 80 for row in passes), "20,000 clips and 32 MB of lines"
    assert "| clips | 40,000 | 40,000 |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["loader", "--sizes", "big"], "--sizes big: wanted WIDTHxHEIGHT"),
        (["loader", "--workers", "0"], "--workers 0"),
        (["order", "--clips", "10", "--shards", "3"], "whole number of clips a shard"),
        (["memory", "--every", "0"], "wanted at least 1"),
        (["ranks", "--ranks", "8,x"], "--ranks 8,x: wanted numbers of ranks"),
        (["rates", "--precisions", "fp64"], "--precisions fp64: known are bf16, fp32"),
        (["footprint", "--stages", "4"], "--stages 4: found '4', wanted numbers from 0 to 3"),
        (["footprint", "--sizes", "XL"], "--sizes XL: known are tiny"),
        (["footprint", "--offloads", "disk"], "--offloads disk: known are none, optimizer, all"),
        (["footprint", "--stages", "0", "--offloads", "optimizer"], "the optimizer wants stage 1 or higher"),
        (["plan", "--rows", "15"], "--rows 15: wanted a multiple of 10"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", *arguments]) == 2
    assert words in capsys.readouterr().err


_EQUAL = [
    "--config",
    "configs/debug.yaml",
    "--against",
    "transformers",
    "--steps",
    "3",
    "--warm",
    "1",
    "masking.recipe=tube",
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_compared_with_that_of_transformers_on_equal_work(tmp_path: Path, precision: str) -> None:
    """The same loss of the same weights, clips and masks shows that the work is equal."""
    file = tmp_path / "figures.json"
    few = [f"train.precision={precision}", "train.micro_batch_size=2", "model.depth=1"]
    assert cli.main(["benchmark", "step", *_EQUAL, *few, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    own, theirs = figures["first_loss"].values()
    assert own == pytest.approx(theirs, rel=1e-5 if precision == "fp32" else 1e-2) and own > 0.5
    assert len(figures["ratios"]) == 2 and min(figures["clips_per_second"].values()) > 0


def test_what_transformers_cannot_do_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["masking.recipe=motion_guided", "model.decode_ratio=0.5"]
    assert cli.main(["benchmark", "step", *_EQUAL[:-1], *given]) == 2
    said = capsys.readouterr().err
    assert (
        "masking.recipe=motion_guided, model.decode_ratio=0.5: its model" in said and "add masking.recipe=tube" in said
    )
