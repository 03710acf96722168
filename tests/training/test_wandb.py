"""log.wandb: the rows of TensorBoard in Weights & Biases' own offline files; whatever fails there, the run goes on."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import environment, finished, run
from short_run import arguments

from tgm_scale import cli
from tgm_scale import config as configuration
from tgm_scale.runs.boards import run_id
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.training.preemption import REQUEUE_EXIT_CODE

OFFLINE = ("log.wandb.project=tests", "log.wandb.mode=offline", "objective.contrastive_weight=0")


def records(data: bytes) -> Iterator[bytes]:
    """Those of a file in the format of LevelDB's logs: in blocks of 32 KiB, whole or in parts; 7 bytes come first."""
    place, whole = 7, b""
    while len(data) - place > 7:
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def sent(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """The run's id and the rows in each of its offline files, in the order of the starts."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda one: one.stat().st_mtime_ns):
        told = [Record.FromString(one) for one in records(file.read_bytes())]
        [name] = {one.run.run_id for one in told if one.WhichOneof("record_type") == "run"}
        items = [one.history.item for one in told if one.WhichOneof("record_type") == "history"]
        rows = [{one.key or one.nested_key[0]: json.loads(one.value_json) for one in row} for row in items]
        found.append((name, rows))
    return found


def test_offline_files_have_the_rows_of_every_start_under_one_id(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    folder = tmp_path / "run"
    given = arguments(config, "train.steps=4", *OFFLINE, "log.pictures_every=3")
    begun = run(1, [*given, "train.max_minutes=1e-9"], code=REQUEUE_EXIT_CODE)
    run(1, given)
    plain = tmp_path / "plain"
    run(1, [*arguments(config, "train.steps=4", f"run.dir={plain}")])
    losses = [[row["loss"] for row in read_metrics(one)] for one in (folder, plain)]
    assert losses[0] == losses[1] and "warning: log.wandb" not in begun.stderr
    (first, before), (second, after) = sent(folder)
    assert first == second == run_id(folder) and f"log.wandb: run {first}, offline: `wandb sync" in begun.stdout
    rows = read_metrics(folder)
    assert [row["_step"] for row in [*before, *after]] == [row["step"] for row in rows] == [1, 2, 3, 4]
    for there, here in zip([*before, *after], rows):
        numbers = {name for name, value in here.items() if isinstance(value, (int, float)) and name != "step"}
        assert {name: there[name] for name in numbers} == {name: here[name] for name in numbers}
        assert ("reconstructions" in there) == (here["step"] == 3)
    assert not list((folder / "wandb").glob("*/files/requirements.txt"))


def test_a_server_that_is_not_there_is_a_warning(config: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    online = arguments(config, "train.steps=2", "log.wandb.project=tests", "log.wandb.mode=online")
    for key, said in (({"WANDB_API_KEY": "0" * 40}, ""), ({}, "no login: run `wandb login`")):
        nowhere = {
            "WANDB_BASE_URL": "http://127.0.0.1:9",
            "WANDB_INIT_TIMEOUT": "2",
            "HOME": str(config.parent),
            "NETRC": os.devnull,
        }
        settings = {name: value for name, value in environment().items() if name != "WANDB_API_KEY"} | nowhere | key
        done = finished(online, settings)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("warning: log.wandb: ") == 1 and said in done.stderr
    assert len(read_metrics(config.parent / "run")) == 2


def test_without_the_package_nothing_is_begun(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    assert cli.main(["pretrain", "--config", str(config), *OFFLINE]) == 2
    assert "the package wandb is not installed: pip install wandb" in capsys.readouterr().err
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize("project", ["a/b", "' '", "50%", "x" * 129])
def test_a_name_that_is_none_is_refused(config: Path, project: str) -> None:
    with pytest.raises(ValueError, match=r"log\.wandb\.project=.*: wanted a name of 1 to 128 letters"):
        configuration.load(str(config), [f"log.wandb.project={project}"])


def test_the_id_is_the_runs_own_wherever_it_lies(tmp_path: Path) -> None:
    ids = []
    for name, records in (("a", "1\n"), ("b", "1\n2\n"), ("c", "2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "environment.jsonl").write_text(records)
        ids.append(run_id(tmp_path / name))
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 16
