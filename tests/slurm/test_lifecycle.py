"""Each of the ten scripts that users submit: submitted as a chain with options on the command line, preempted, gone on
with by the next job, preempted three times more, signalled, requeued, and finished; every stdout begins with a banner.

All ten at once, so that one job of a more urgent partition preempts them all. What they run is real and tiny; until
its gate opens, a python waits before it starts, so that no work is done before it was preempted often enough.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from simulated import ROOT, Cluster, log_of, overrides, steps_of, wait_for, write_facts

from tgm_scale.conversion.convert import convert
from tgm_scale.conversion.key_maps import ModelMetadata
from tgm_scale.conversion.weights import Weights
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.encode import encode_video
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions, ModelSize

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

PREEMPTED = 3
STEPS = {"pretrain_vitb": 48, "pretrain_vitl": 8, "pretrain_vith": 8, "pretrain_vitg": 8}  # the first amid its work
SCRIPTS = [
    *(f"pretrain_vit{size}" for size in "blhg"),
    *("finetune", "probe", "make_shards", "caption", "cache_relevance", "tune"),
]
# Preflight would find that torch does not see it; and two nodes have eight
NO_GPU_OF_NAME = ["make_shards", "finetune", *(script for script in SCRIPTS if script.startswith("pretrain"))]
OPTIONS = [
    *("--gpus-per-node=0", "--exclude=node3", "--constraint=simulated", "--reservation=tests"),
    *("--mem=150", "--licenses=videos:2", "--nice=3", "--time=50", "--comment=two words", "--account=vision"),
]
PASSED_ON = [
    *("Partition", "TimeLimit", "Features", "ExcNodeList", "Reservation", "Licenses", "MinMemoryNode", "Nice"),
    *("Account", "Comment", "NumNodes", "CPUs/Task", "NtasksPerN:B:S:C", "StdOut", "WorkDir", "JobName"),
]


@dataclass
class Life:
    """A script's work and the jobs that did it."""

    script: str
    folder: Path  # of its log and its cluster.env
    arguments: list[str]
    attempts: list[Path]
    options: Sequence[str] = ()
    facts: dict[str, str] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)  # one, or those of an array's tasks
    told: dict[str, str] = field(default_factory=dict)  # of the first job and of the next, by scontrol

    def write_facts(self, **changes: str) -> None:
        write_facts(self.folder, self.facts | changes)

    def open_gate(self) -> None:
        (self.folder / "gate").touch()

    def noted(self, what: str) -> list[list[str]]:
        lines = [line.split() for file in self.attempts if file.is_file() for line in file.read_text().splitlines()]
        return [line for line in lines if line[2] == what]

    def began(self, count: int) -> bool:
        return len(self.noted("began")) >= count * len(self.attempts)


@pytest.fixture(scope="module")
def lives(cluster: Cluster, shards: Path, towers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    found = {script: _life(script, tmp_path_factory.mktemp(script), shards, towers) for script in SCRIPTS}
    reservation = ("reservationname=tests", "nodes=ALL", "users=root", "starttime=now", "duration=60")
    cluster.run("scontrol", "create", *reservation)
    for life in found.values():
        _submit(cluster, life)
    everyone = list(found.values())
    _all_began(everyone, 1)
    for life in everyone:
        life.told["first"] = cluster.run("scontrol", "show", "job", life.jobs[0])
        life.write_facts(TGM_REQUEUE="yes")
    cluster.preempt_all()
    for life in everyone:
        life.jobs = _next_jobs(cluster, life)
    for round_ in range(PREEMPTED):
        _all_began(everyone, 2 + round_)
        if round_ == 0:
            for life in everyone:
                life.told["next"] = cluster.run("scontrol", "show", "job", life.jobs[0])
        if round_ == PREEMPTED - 1:  # the last time, one of them amid its training
            in_training(found["pretrain_vitb"])
        cluster.preempt_all()
        _let_go(cluster, everyone)
    _signal(cluster, [life for life in everyone if "pretrain" not in life.script])
    for life in everyone:
        life.open_gate()
    for life in everyone:
        for job in life.jobs:
            cluster.finish(job)
    yield found
    cluster.clear()
    cluster.run("scontrol", "delete", "reservationname=tests")


def _life(script: str, folder: Path, shards: Path, towers: Path) -> Life:
    run, output = folder / "run", folder / "output"
    banner = folder / "python"
    image = folder / "image" / "tgm_scale"  # with another version of the package
    image.mkdir(parents=True)
    (image / "__init__.py").write_text("raise SystemExit(\"the image's package, not the checkout's\")\n")
    lines = ["#!/bin/bash", 'echo "Welcome to the site\'s image"', f"export PYTHONPATH=$PYTHONPATH:{image.parent}"]
    # GPUs in name alone: a run would miss what SLURM says it gave
    lines.append("unset CUDA_VISIBLE_DEVICES SLURM_STEP_GPUS SLURM_JOB_GPUS SLURM_GPUS_ON_NODE")
    lines.append(f'[[ "$*" == *" config "* ]] || while [ ! -e {folder}/gate ]; do sleep 0.2; done')
    banner.write_text("\n".join([*lines, f'exec {sys.executable} "$@"\n']))
    banner.chmod(0o755)
    arguments, attempts, options = [f"run.dir={run}"], [run / "attempts"], []
    data = [f"data.train={shards}", f"data.test={shards}", "data.root=null", "data.workers=0", "data.label=label"]
    if script.startswith("pretrain"):
        own = ["checkpoint.every=2", "deepspeed.config=null", "model.decode_ratio=1"]
        arguments = [*overrides(run, shards, STEPS[script]), *own, "masking.visible_ratio=null"]
    elif script == "finetune":
        shape = ["data.frames=4", "data.stride=2", "data.size=32", "model.size=tiny", "finetune.test_spatial_views=1"]
        batch = ["train.epochs=6", "train.global_batch_size=8", "train.micro_batch_size=8", "train.precision=fp32"]
        rest = ["deepspeed.config=null", "finetune.test_temporal_views=1", "log.tensorboard=false"]
        arguments = ["configs/finetune_k400.yaml", *arguments, *data, *shape, *batch, *rest]
    elif script == "probe":
        checkpoint = f"encoder.checkpoint={_checkpoint(folder)}"
        arguments = ["configs/probe_k400.yaml", *arguments, *data, checkpoint, "data.stride=2"]
    elif script == "tune":
        grid = ["--processes=1", "--stages=0", "--offloads=none", "--micro-batches=8", "--steps=2", "--warm=0"]
        what = [*overrides(run, shards, 8)[1:], "deepspeed.config=null"]
        arguments = ["--config", "configs/pretrain_vitb.yaml", "--dir", str(output), *grid, *what]
        attempts = [output / "attempts"]
    else:
        arguments = [f"--output={output}", *_sharing(script, folder, shards, towers)]
        attempts = [output / "attempts-0", output / "attempts-1"]
        options = ["--array=0-1"]
    facts = {"TGM_PYTHON": str(banner), "TGM_TASKS": "2"}
    return Life(script, folder, arguments, attempts, options, facts)


def _checkpoint(folder: Path) -> Path:
    size = ModelSize(24, 1, 2, 48, 16, 1, 2, 32, patch=8)
    model = MaskedVideoAutoencoder(size, frames=4, image_size=32, options=ModelOptions("sdpa"), seed=7)
    file = folder / "model.safetensors"
    convert(
        Weights.of("pretraining", model.state_dict(), ModelMetadata(2, 2, 4, 32, None, {}), []), file, "safetensors"
    )
    return file


def _sharing(script: str, folder: Path, shards: Path, towers: Path) -> list[str]:
    if script == "caption":
        return [f"--shards={shards}", "--classes=label"]
    if script == "cache_relevance":
        return [f"--shards={shards}", f"--towers={towers}"]
    videos, annotations = folder / "videos", folder / "rows.jsonl"
    videos.mkdir()
    rows = [{"Start_timestamp": "00:00:00.000", "End_timestamp": "00:00:02.000", "Caption": "noise"} for _ in range(4)]
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    for i, row in enumerate(rows):
        row["YoutubeID"] = f"video{i}"
        (videos / f"video{i}.mp4").write_bytes(encode_video(noise, 25))
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"--annotations={annotations}", f"--videos={videos}", "--clips-per-shard=2"]


def _submit(cluster: Cluster, life: Life) -> None:
    facts = {**life.facts, "TGM_REQUEUE": "chain"}
    options = [*life.options, "--nodes=1", *OPTIONS]
    if life.script not in NO_GPU_OF_NAME:
        options.append("--gres=gpu:a100:1")
    job = cluster.submit(f"{life.script}.sh", life.folder, facts, *life.arguments, options=options)
    life.jobs = [f"{job}_0", f"{job}_1"] if life.options else [job]


def _next_jobs(cluster: Cluster, life: Life) -> list[str]:
    """Of the chain; of an array in the order of its tasks."""
    following = set(re.findall(r"job (\d+) continues the run if", log_of(life.folder)))
    assert len(following) == len(life.jobs), log_of(life.folder)
    return sorted(following, key=lambda job: cluster.fact(job, "ArrayTaskId"))


def _all_began(lives: list[Life], count: int) -> None:
    waiting = lambda: [life.script for life in lives if not life.began(count)]  # noqa: E731
    wait_for(
        lambda: not waiting(),
        120,
        lambda: f"start {count} of {waiting()}\n" + "\n".join(log_of(x.folder) for x in lives),
    )


def _let_go(cluster: Cluster, lives: list[Life]) -> None:
    """As Cluster.let_go does with one job."""
    jobs = [job for life in lives for job in life.jobs]
    pending = lambda: [job for job in jobs if cluster.state(job) == "PENDING"]  # noqa: E731
    wait_for(lambda: len(pending()) == len(jobs), 60, lambda: cluster.run("squeue"))
    time.sleep(3)
    for job in jobs:
        cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")


def in_training(life: Life) -> None:
    """Let a run make some steps."""
    life.open_gate()
    wait_for(lambda: steps_of(life.folder / "run") >= 2, 120, lambda: log_of(life.folder))


def _signal(cluster: Cluster, lives: list[Life]) -> None:
    """What SLURM sends before a time limit, in the way that each script asks for."""
    _all_began(lives, 2 + PREEMPTED)
    for life in lives:
        to = ["--batch"] if "--signal=B:USR1" in (ROOT / f"slurm/{life.script}.sh").read_text() else []
        if not to:
            in_training(life)
        for job in life.jobs:
            cluster.run("scancel", "--signal=USR1", *to, job)
    _let_go(cluster, lives)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_goes_on_until_it_is_done(cluster: Cluster, lives: dict[str, Life], script: str) -> None:
    life = lives[script]
    log = log_of(life.folder)
    assert all(cluster.state(job) == "COMPLETED" for job in life.jobs), log
    signalled = "pretrain" not in script
    parts = len(life.attempts)
    assert len(life.noted("began")) == (2 + PREEMPTED + signalled) * parts, log
    ends = [how for _, _, _, how, _ in life.noted("ended")]
    assert sorted(ends) == sorted((["outside"] * (1 + PREEMPTED) + ["85"] * signalled + ["0"]) * parts), log
    assert log.count("done: ") == parts
    said = log + "".join(file.read_text() for file in (life.folder / "run").glob("logs/*/rank-0000.log"))
    assert "Welcome to the site's image" in said
    _assert_made(life)


def _assert_made(life: Life) -> None:
    run, output = life.folder / "run", life.folder / "output"
    if life.script.startswith("pretrain"):
        assert steps_of(run) == STEPS[life.script]
    elif life.script in ("finetune", "probe"):
        assert json.loads((run / "results.json").read_text())["figures"]
        checked = [file.read_text() for file in run.glob("logs/*/preflight.log")]
        assert any("tried its label" in text for text in checked) == (life.script == "finetune"), checked
    elif life.script == "tune":
        assert "fastest that fits: " in log_of(life.folder) and (output / "best.overrides").is_file()
    else:
        corpus = open_corpus(str(output))
        assert len(corpus) == (4 if life.script == "make_shards" else 30)
        if life.script == "caption":
            assert "a video of" in json.loads(corpus.read(corpus.sample(0, 0), ["json"])["json"])["captions"][0]
        if life.script == "cache_relevance":
            assert "tgm.npy" in corpus.sample(0, 0).members
            assert "3 of 3 shards finished" in log_of(life.folder)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_next_job_of_a_chain_has_the_options_of_the_first(lives: dict[str, Life], script: str) -> None:
    first, following = (_facts(lives[script].told[which]) for which in ("first", "next"))
    differing = {
        name: (first.get(name), following.get(name)) for name in PASSED_ON if first.get(name) != following.get(name)
    }
    assert not differing
    assert first["Features"] == "simulated" and first["ExcNodeList"] == "node3" and first["MinMemoryNode"] == "150M"
    asked = "gres:gpu:0" if script in NO_GPU_OF_NAME else "gres:gpu:a100:1"
    assert following.get("TresPerNode", "gres:gpu:0") == asked
    assert first.get("ArrayTaskId") == following.get("ArrayTaskId")


def _facts(told: str) -> dict[str, str]:
    """Of `scontrol show job`: words, and what has a line to itself."""
    facts = dict(word.partition("=")[::2] for word in told.split() if "=" in word)
    return facts | dict(re.findall(r"^ *(Comment|WorkDir|StdOut)=(.*\S)", told, re.MULTILINE))
