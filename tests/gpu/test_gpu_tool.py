"""tools/gpu.py without a GPU: a row that breaks costs one row, what worked is kept, mistakes are told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
import try_versions
from gpu_checks import card, others, pretraining, restarts, versus
from gpu_checks.bench import Bench, Failed, Found, OutOfMemory, Skipped
from gpu_checks.rows import ROWS, Row
from gpu_checks.scale import SCALES

from tgm_scale.benchmarks import against
from tgm_scale.runtime.rendezvous import SHARED_GPU

ROOT = Path(__file__).parents[2]
HANGS = """
import subprocess, sys, time
sleep = "import time; time.sleep(987)"
subprocess.Popen([sys.executable, "-c", sleep], process_group=0)  # as ninja starts a compiler
subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)  # as torchrun starts a rank
exec(sleep)
"""
LIMIT = 3.0  # seconds, of the row that hangs


class Quick(Row):
    def limit(self, device: str) -> float:
        return LIMIT if self.name == "hangs" else 60


def row(name: str, code: str) -> Row:
    def check(bench: Bench) -> Found:
        return Found(bench.python("-c", code).strip(), {"pid": 1})

    return Quick(name, f"does {name}", check, cuda=1, cpu=1)


def nothing(bench: Bench) -> Found:
    raise Skipped("not on this machine")


def mistake(bench: Bench) -> Found:
    raise KeyError("clips_per_second")


BROKEN = (
    row("works", "print('well')"),
    row("raises", "raise RuntimeError('no kernel image is available')"),
    row("segfaults", "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"),
    row("hangs", HANGS),
    row("short of memory", "raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')"),
    Quick("skips", "", nothing, cuda=1, cpu=1),
    Quick("is wrong", "", mistake, cuda=1, cpu=1),
    row("works after all that", "import torch; print('no CUDA' if not torch.cuda.is_available() else 'CUDA')"),
)


def start(output: Path, *options: str) -> int:
    return gpu.main(["--device", "cpu", "--output", str(output), *options])


def summary(output: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((output / "summary.json").read_text())["rows"]}


def processes_with(word: str) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [file.parent.name] if word in file.read_text() else []
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("gpu") / "broken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "ROWS", BROKEN)
        assert start(output) == 1
    return output


def test_a_row_that_breaks_costs_one_row(broken: Path) -> None:
    rows = summary(broken)
    assert [rows[name]["verdict"] for name in ("works", "works after all that", "skips")] == ["ok", "ok", "skipped"]
    failed = {name: row["figure"] for name, row in rows.items() if row["verdict"] == "failed"}
    assert failed.keys() == {"raises", "segfaults", "hangs", "short of memory", "is wrong"}
    assert "no kernel image" in failed["raises"] and "SIGSEGV" in failed["segfaults"]
    assert "time limit" in failed["hangs"] and LIMIT <= rows["hangs"]["seconds"] < LIMIT + 20
    assert "out of memory" in failed["short of memory"] and rows["short of memory"]["remedy"]
    assert "KeyError" in failed["is wrong"]
    assert any("RuntimeError: no kernel image" in line for line in rows["raises"]["log"])
    assert (broken / "logs" / "segfaults.log").read_text().splitlines()[1:] == ["so far"]
    assert rows["works after all that"]["figure"] == "no CUDA", "a CPU's rows see no GPU"


def test_nothing_of_a_row_that_hung_is_left(broken: Path) -> None:
    time.sleep(0.2)
    assert not processes_with("time.sleep(987)")


def test_what_worked_is_kept_and_the_rest_is_tried_again(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mended = [row(r.name, "print('another time')") for r in BROKEN]
    monkeypatch.setattr(gpu, "ROWS", mended)
    assert start(broken) == 0
    rows = summary(broken)
    assert rows["works"]["figure"] == "well" and rows["raises"]["figure"] == "another time"
    assert start(broken, "--again", "--only", "works") == 0
    rows = summary(broken)
    assert rows["works"]["figure"] == "another time"
    assert rows["works after all that"]["figure"] == "no CUDA", "what is not in --only stays as it was found"


def test_what_other_code_found_is_not_kept(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_checks import runner

    monkeypatch.setattr(gpu, "ROWS", [row("works", "print('by other code')")])
    monkeypatch.setattr(runner, "commit", lambda: "another")
    assert start(broken) == 0
    assert summary(broken)["works"]["figure"] == "by other code"


def test_rows_that_do_not_fit_the_minutes_are_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "ROWS", [row("first", "pass"), replace(row("long", "pass"), cpu=900)])
    assert start(tmp_path / "out", "--minutes", "2") == 0
    late = summary(tmp_path / "out")["long"]
    assert late["verdict"] == "skipped" and "--minutes 2" in late["figure"]


def test_the_report_is_one_file(broken: Path) -> None:
    page = (broken / "report.html").read_text()
    assert not re.findall(r"<(?:script|link)|(?:src|href)=\"(?!data:|#)", page)
    for name in summary(broken):
        assert name in page


@pytest.mark.parametrize(
    ("code", "said", "steps", "told"),
    [
        (1, f"ranks 0, 1 on h {SHARED_GPU} (GPU-7): start as many", False, None),
        (1, "RuntimeError: CUDA error: device-side assert; GPU 0 has fallen off the bus", False, "something else"),
        (1, f"ranks 0, 1 on h {SHARED_GPU} (GPU-7)", True, "trained on one GPU"),
        (0, "", False, "trained on one GPU"),
    ],
)
def test_only_the_verdict_of_the_start_refuses_a_shared_gpu(
    tmp_path: Path, code: int, said: str, steps: bool, told: str | None
) -> None:
    if steps:
        (tmp_path / "metrics.jsonl").touch()
    if told is None:
        assert SHARED_GPU in others.refused(code, said, tmp_path).figure
    else:
        with pytest.raises(Failed, match=told):
            others.refused(code, said, tmp_path)


def bench_at(folder: Path) -> Bench:
    return Bench(SCALES["cpu"], folder, folder, folder / "log", time.monotonic() + 60)


def test_a_failure_at_one_stage_is_not_hidden_by_what_another_cannot_try(tmp_path: Path) -> None:
    def check(bench: Bench, stage: int) -> str:
        if stage == 2:
            raise Failed("not equal")
        if stage == 1:
            raise Skipped("no kernel")
        return f"{stage} equal"

    with pytest.raises(Failed, match="not equal"):
        restarts.at_once(bench_at(tmp_path), check, [0, 1, 2])
    with pytest.raises(Skipped):
        restarts.at_once(bench_at(tmp_path), check, [0, 1])
    assert restarts.at_once(bench_at(tmp_path), check, [0, 3]) == ["0 equal", "3 equal"]


def test_an_interrupt_ends_what_the_threads_run(tmp_path: Path) -> None:
    def check(bench: Bench, stage: int) -> str:
        with bench.start([sys.executable, "-c", "import time; time.sleep(986)"]) as process:
            if stage == 1:
                main = threading.main_thread().ident
                assert main is not None
                threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
            process.wait()
        return ""

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in its background without
    with pytest.raises(KeyboardInterrupt):
        restarts.at_once(bench_at(tmp_path), check, [0, 1])
    assert not processes_with("time.sleep(986)")


def test_a_folder_that_cannot_be_emptied_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROWS", [row("stuck", "pass"), row("free", "print('well')")])
    assert start(tmp_path / "out") == 0
    stuck = tmp_path / "out/rows/stuck"
    stuck.rmdir()
    stuck.touch()  # rmtree leaves a file
    assert start(tmp_path / "out", "--again") == 1
    rows = summary(tmp_path / "out")
    assert rows["free"]["figure"] == "well" and "cannot be emptied" in rows["stuck"]["figure"]


def test_a_gpu_that_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "LOOK_SECONDS", 0.05)
    assert gpu.main(["--output", str(ROOT / "nowhere")]) == 2
    assert "took longer than 0.05 s" in capsys.readouterr().err


def test_our_step_is_compiled_as_training_compiles_it() -> None:
    work = versus.work_of(SCALES["cpu"], torch.device("cpu"))
    for compiled in (False, True):
        model = against.own_model(work)
        against.own_step(work, model, compiled)
        assert model._compiled_call_impl is None, "not as one graph"
        assert all((block._compiled_call_impl is not None) == compiled for block in model.encoder.blocks)


def test_the_newest_interpreter_that_runs_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, code in (("3.11.9", 0), ("3.11.10", 0), ("3.11.12", 1), ("3.11-dev", 0)):
        python = tmp_path / "versions" / version / "bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\nexit {code}\n")
        python.chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert try_versions._interpreter("3.11") == str(tmp_path / "versions/3.11.10/bin/python")
    assert try_versions._interpreter("3.12") is None


def test_the_counts_of_a_cell_are_pytests_own_line() -> None:
    said = "..s\n== 195 passed, 26 skipped in 9.07s ==\nsys:1: DeprecationWarning: builtin type swigvarlink\n"
    assert try_versions._counts(said) == "195 passed, 26 skipped in 9.07s"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--only", "vitb,zeros"], "--only vitb: no such row; known: inputs, card"),
        (["--skip", "nothing*"], "--skip nothing*: no such row"),
        (["--minutes", "0"], "wanted a number of minutes above 0"),
        (["--minutes", "nan"], "wanted a number of minutes above 0"),
        (["--minutes", "ten"], "wanted a number of minutes above 0"),
        (["--output", str(ROOT / "setup.cfg")], "cannot be written"),
        (["--output", str(ROOT / "configs")], "holds something else"),
    ],
)
def test_a_users_mistake(capsys: pytest.CaptureFixture[str], options: list[str], told: str) -> None:
    try:
        code = gpu.main(["--device", "cpu", *options])
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 2 and told in capsys.readouterr().err


def test_without_a_gpu_it_says_so_and_what_a_cpu_can_do() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tools/gpu.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--device cpu" in done.stderr and "GPU" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


FACTS = {"torch": "2.13.0", "built_for": "13.0", "driver": "470.1", "driver_cuda": "11.4", "visible": None, "gpus": []}
GPU = {"name": "NVIDIA H100", "capability": "9.0", "memory_gb": 80.0, "in_use_gb": 0.6, "users": []}


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"error": "The NVIDIA driver is too old"}, "driver 470.1 speaks CUDA 11.4 and is older than torch 2.13.0"),
        ({"error": "too old", "driver": None}, "the driver speaks CUDA 11.4"),
        ({"built_for": None, "error": "not compiled"}, "built without CUDA"),
        ({"driver_cuda": None, "error": "Found no NVIDIA driver"}, "no CUDA driver is installed"),
        ({"driver_cuda": "13.1", "visible": "7", "error": None}, "CUDA_VISIBLE_DEVICES='7'"),
        ({"driver_cuda": "13.1", "error": "no kernel image"}, "no kernel image"),
    ],
)
def test_why_no_gpu_can_be_used(facts: dict[str, Any], told: str) -> None:
    assert told in (card.obstacle(FACTS | facts) or "")


def test_a_newer_driver_and_an_older_minor_version_are_no_obstacle() -> None:
    for speaks in ("13.0", "13.1", "14.0"):
        assert card.obstacle(FACTS | {"error": None, "driver_cuda": speaks, "gpus": [GPU]}) is None


def test_others_on_a_gpu_are_named() -> None:
    assert not card.busy([GPU])
    (line,) = card.busy([GPU, GPU | {"in_use_gb": 34.5, "users": ["python (pid 7, 34000 MiB)"]}])
    assert "GPU 1 is in use by others, 34.5 of 80.0 GB: python (pid 7" in line


@pytest.mark.parametrize(("memory", "verdict"), [(24.0, "ok"), (80.0, "failed")])
def test_too_little_memory_says_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float, verdict: str
) -> None:
    """Where the configuration names a card of 80 GB, not to fit one is a broken promise."""
    metrics = {"step_seconds": 1.0, "data_seconds": 0.0, "guidance_seconds": 0.0, "data_digest": "0", "loss": 1.0}

    def run(bench: Bench, name: str, size: str, micro: int, *_: Any) -> list[dict]:
        if micro > 32:
            raise OutOfMemory("CUDA out of memory")
        return [metrics] * 10

    monkeypatch.setattr(pretraining, "pretrain", run)
    card_of = replace(SCALES["cuda"])
    bench = Bench(card_of, tmp_path, tmp_path, tmp_path / "log", time.monotonic() + 9, [GPU | {"memory_gb": memory}])
    if verdict == "failed":
        with pytest.raises(pretraining.Failed, match="80 GB") as failed:
            pretraining.speed(bench, "B")
        remedy = failed.value.remedy
    else:
        remedy = pretraining.speed(bench, "B").remedy
    assert remedy == "train.micro_batch_size=32 fits, 128 does not"


def test_names_of_rows_are_names() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) and all(re.fullmatch("[a-z0-9-]+", name) for name in names)


# one row of each kind of work, at most 3 minutes on a CPU; the rest is more of the same, or takes its time (`compile`,
# `versus` and the offloads build and compile; tests/report runs the demo)
SHORT = "inputs,card,tests,vitb-guided,flash,zero2,resume,exact,several,two-ranks-one-gpu,preflight,data,masks".split(
    ","
)


@pytest.mark.slow
def test_the_short_form_on_a_cpu(tmp_path: Path) -> None:
    """At tiny size: no row fails, and what is skipped says why."""
    output = tmp_path / "gpu"
    command = [sys.executable, "tools/gpu.py", "--device", "cpu", "--minutes", "60", "--output", str(output)]
    done = subprocess.run([*command, "--only", ",".join(SHORT)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {name: row for name, row in summary(output).items() if name in SHORT}
    assert rows.keys() == set(SHORT) <= {row.name for row in ROWS}
    skipped = {name: row["figure"] for name, row in rows.items() if row["verdict"] == "skipped"}
    assert skipped.keys() == {"flash", "two-ranks-one-gpu"} and all(skipped.values())
    assert "equal to the last bit" in rows["exact"]["figure"]
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
