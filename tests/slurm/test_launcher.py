"""What the launcher does before and after the work: mistakes in cluster.env and on the command line, by message; the
work's exit codes, by the number of starts.

Most of these jobs end before a python starts. Exit codes come from a stand-in for the python, since training gives
some of them only after hours.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated import ROOT, Cluster, log_of, wait_for

from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus

pytestmark = pytest.mark.slurm

OLD_MODULE = "() { echo \"ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for 'cuda/99'\" >&2; }"
WRONG = {
    "a module that fails": (
        {"TGM_MODULES": "cuda/99"},
        {"BASH_FUNC_module%%": '() { echo "unknown module $2"; return 1; }'},
        ["unknown module cuda/99", "'module load cuda/99' failed (exit code 1)", "cluster.env"],
    ),
    "a module that fails and ends with 0": (
        {"TGM_MODULES": "cuda/99"},
        {"BASH_FUNC_module%%": OLD_MODULE},
        ["Unable to locate a modulefile", "'module load cuda/99' failed"],
    ),
    "no module command": ({"TGM_MODULES": "cuda"}, {}, ["batch shells have no module command"]),
    "a variable of cluster.env that is not set": (
        {"TGM_PYTHON": "$NOT_SET_HERE/bin/python"},
        {},
        ["NOT_SET_HERE: unbound variable", "cluster.env could not be read to its end"],
    ),
    "a command of cluster.env that fails": ({"TGM_X": "$(false)"}, {}, ["cluster.env could not be read to its end"]),
    "a scratch that is not there": (
        {"TGM_SCRATCH": "/proc/none"},
        {},
        ["TGM_SCRATCH=/proc/none: no folder of ours can be made there", "node1"],
    ),
    "a wrong way to go on": ({"TGM_REQUEUE": "maybe"}, {}, ["TGM_REQUEUE=maybe: wanted yes, chain or no"]),
    "no python there": ({"TGM_PYTHON": "/nowhere/python"}, {}, ["/nowhere/python", "not started"]),
}


@pytest.fixture(autouse=True)
def cleared(cluster: Cluster) -> Iterator[None]:
    before = dict(cluster.environment)
    yield
    cluster.environment = before
    cluster.clear()


def refused(cluster: Cluster, job: str, folder: Path, code: int = 2) -> str:
    """The log of a job that was not started; fails where it was, or where another waits for it."""
    assert cluster.finish(job, 60) == "FAILED", log_of(folder)
    assert cluster.fact(job, "ExitCode") == f"{code}:0" and cluster.fact(job, "Restarts") == "0", log_of(folder)
    assert not cluster.run("squeue", "--noheader")
    return log_of(folder)


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_the_cluster_is_named(cluster: Cluster, tmp_path: Path, what: str) -> None:
    facts, environment, words = WRONG[what]
    cluster.environment |= environment
    facts = {"TGM_REQUEUE": "chain", **facts}
    arguments = ("configs/probe_k400.yaml", f"run.dir={tmp_path}/run")
    job = cluster.submit("probe.sh", tmp_path, facts, *arguments, options=["--nodelist=node1"])
    log = refused(cluster, job, tmp_path)
    assert all(word in log for word in words), log
    assert not (tmp_path / "run").exists()


def test_a_scontrol_that_fails_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    broken = tmp_path / "scontrol"
    broken.write_text('#!/bin/bash\necho "slurm_load_jobs error: Unable to contact slurm controller" >&2\nexit 1\n')
    broken.chmod(0o755)
    job = cluster.submit("pretrain_vitb.sh", tmp_path, {"PATH": f"{tmp_path}:$PATH"}, options=["--nodes=1"])
    log = refused(cluster, job, tmp_path, code=1)
    assert "Unable to contact slurm controller" in log and "did not tell the address of the first node" in log


def test_what_lies_in_the_shell_of_sbatch_does_not_reach_the_tasks(cluster: Cluster, tmp_path: Path) -> None:
    """Of an interactive srun's shell its cores and memory, of `--export` a list that leaves out what is exported."""
    python = tmp_path / "python"
    names = ("MASTER_ADDR", "OMP_NUM_THREADS", "SLURM_CPU_BIND_LIST", "SLURM_MEM_BIND", "SLURM_MEM_PER_CPU")
    said = " ".join(f"{name}=${{{name}:-none}}" for name in names)
    python.write_text(f'#!/bin/bash\necho "a task: {said}" >&2\nexit 2\n')
    python.chmod(0o755)
    cluster.environment |= {
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x800000000000",
        "SLURM_CPU_BIND_LIST": "0x800000000000",
        "SLURM_CPU_BIND_TYPE": "mask_cpu:",
        "SLURM_MEM_BIND": "verbose,none",
        "SLURM_MEM_PER_CPU": "7",
    }
    options = ["--nodes=1", "--export=TGM_CLUSTER,SLURM_CONF,PATH"]
    arguments = ("configs/probe_k400.yaml", f"run.dir={tmp_path}/run")
    job = cluster.submit("probe.sh", tmp_path, {"TGM_PYTHON": str(python)}, *arguments, options=options)
    [line] = re.findall("a task: .*", refused(cluster, job, tmp_path))
    assert re.search(r"MASTER_ADDR=[\d.]+ OMP_NUM_THREADS=1 ", line), line
    assert "0x800000000000" not in line and "verbose" not in line and "SLURM_MEM_PER_CPU=7" not in line, line


@pytest.mark.parametrize(
    ("script", "arguments", "options", "words"),
    [
        ("finetune.sh", (), (), "no configuration is named"),
        ("probe.sh", ("encoder.checkpoint=x",), (), "encoder.checkpoint=x"),
        ("tune.sh", ("--config", "configs/debug.yaml"), (), "tools/tune_deepspeed.py wants --dir FOLDER"),
        ("caption.sh", ("--out=x",), ("--array=0",), "tools/caption_clips.py wants --output FOLDER"),
        ("study.sh", (), ("--array=0",), "no study is named"),
        ("study.sh", ("configs/study/paper.yaml",), ("--array=10",), "--array has part 10 of the parts 0 to 9"),
        ("study.sh", ("configs/study/paper.yaml", "study.x=1"), ("--array=0",), "study.x: unknown key"),
        ("caption.sh", ("--output=x",), ("--array=9",), "--array has part 9 of the parts 0 to 7: set TGM_TASKS"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_named(
    cluster: Cluster, tmp_path: Path, script: str, arguments: tuple[str, ...], options: tuple[str, ...], words: str
) -> None:
    job = cluster.submit(script, tmp_path, {}, *arguments, options=options)
    log = refused(cluster, job, tmp_path)
    assert words.replace("tools/", "") in log.replace("tools/", ""), log


def test_a_script_that_is_not_started_by_sbatch_says_so() -> None:
    for words in (["slurm/pretrain_vitb.sh"], ["slurm/tune.sh", "--help"]):
        done = subprocess.run(["bash", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2 and "SLURM_JOB_ID is not set" in done.stdout, done.stdout + done.stderr
        assert f"start this with sbatch {words[0]} ... (docs/SCALING.md)\n" in done.stdout


def test_a_job_of_another_folder_says_where_to_submit(cluster: Cluster, tmp_path: Path) -> None:
    arguments = ("--parsable", "--chdir", str(tmp_path), f"--output={tmp_path}/job-%j.log", "--gpus-per-node=0")
    export = "--cpus-per-task=1", "--export=ALL,TGM_HOME=" + str(tmp_path)
    job = cluster.run("sbatch", *arguments, *export, f"{ROOT}/slurm/tune.sh").strip()
    assert "submit from the root of the repository, or export TGM_HOME" in refused(cluster, job, tmp_path)


def test_exit_codes_decide_what_is_started_again(cluster: Cluster, tmp_path: Path) -> None:
    starts = {1: 3, 2: 1, 4: 1, 85: 3, 86: 3, 87: 2, 137: 3}
    for code in starts:
        folder = tmp_path / str(code)
        folder.mkdir()
        dying = folder / "python"
        dying.write_text(f"#!/bin/bash\nexit {code}\n")
        dying.chmod(0o755)
        # unset: as on sites that give these options in other ways, or not at all
        unset = "unset SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK SLURM_NTASKS SLURM_JOB_NUM_NODES"
        facts = {"TGM_PYTHON": str(dying), "TGM_REQUEUE": f"chain; {unset}"}
        cluster.submit("caption.sh", folder, facts, f"--output={folder}/shards", options=["--array=0"])
    wait_for(lambda: not cluster.run("squeue", "--noheader"), 90, lambda: cluster.run("squeue"))
    logs = {code: log_of(tmp_path / str(code)) for code in starts}
    for code, log in logs.items():
        noted = [line.split() for line in (tmp_path / str(code) / "shards/attempts-0").read_text().splitlines()]
        assert [how for _, _, what, how, _ in noted if what == "ended"] == [str(code)] * starts[code], log
        assert len({job for _, job, *_ in noted}) == starts[code], "each was a job of its own"
        assert "unbound" not in log and "launch.sh: " not in log
    assert "ask for more with --mem, or lower data.workers" in logs[87]
    assert "the second start in a row that ended in this way: not started again" in logs[87]
    assert "a crash loop" in logs[86] and "a crash loop" in logs[85] and "not started again" in logs[4]


def told(folder: Path, *commands: str) -> str:
    """Output of commands in a shell that has the launcher's functions."""
    setting = f"set -eu; folder={folder}; attempts=$folder/attempts; source slurm/lib/attempts.sh; "
    done = subprocess.run(
        ["bash", "-c", setting + "; ".join(commands)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_line_has_its_time_though_no_command_can_run(tmp_path: Path) -> None:
    """A signal to the whole job ends what the launcher has just started, as `date` was."""
    told(tmp_path, "TGM_CHAIN=1 job=2 PATH=/nowhere", "note ended outside")
    assert re.fullmatch(r"1 2\.0 ended outside \d{4}-\d\d-\d\dT[\d:]{8}\n", (tmp_path / "attempts").read_text())


def test_progress_is_what_the_work_counts_as_such(tmp_path: Path) -> None:
    assert told(tmp_path, "kind=run", "progress", "progress_in_words") == "0+0\nstep 0"
    for step in ("step-00000900", "step-00001000"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "checkpoints" / step / "manifest.json").touch()
    (tmp_path / "checkpoints" / "step-00002000").mkdir()  # not whole
    assert told(tmp_path, "kind=run", "progress", "progress_in_words") == "1000+0\nstep 1000"
    for part in ("features/ab", "test/cd"):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / "000000.safetensors").touch()
    assert told(tmp_path, "kind=run", "progress_in_words") == "step 1000 and 2 files of features"
    names = ("00000.tar", "00000.report.json", "00001.tar", "00003.report.json", "00005.tar.partial", "100001.tar")
    for name in names:
        (tmp_path / name).touch()
    assert told(tmp_path, "kind=shards task=1 tasks=2", "progress") == "3"
    assert told(tmp_path, "kind=shards task=0 tasks=2", "progress") == "1"
    assert told(tmp_path, "kind=trials", "progress") == "0"
    assert told(tmp_path, "kind=study", "progress") == "1002", "its features count, too"


def test_starts_that_were_ended_from_outside_are_no_crashes(tmp_path: Path) -> None:
    lines = [
        *("1 1.0 began 0+0 T", "1 1.0 ended outside T", "1 1.1 began 0+0 T", "1 1.1 ended 137 T"),
        *("1 1.2 began 0+0 T", "9 9.0 began 0+0 T", "1 1.3 began 5+0 T", "1 1.3 ended 87 T"),
    ]
    (tmp_path / "attempts").write_text("".join(f"{line}\n" for line in lines))
    assert told(tmp_path, "kind=run TGM_CHAIN=1", "starts_here", "last_two_ends") == "2\n137 87"


def test_sbatch_knows_the_variables_of_the_example() -> None:
    """By the names in the library that reads them."""
    sbatch = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=False).stdout.strip()
    if not sbatch:
        pytest.skip("SLURM is not installed")
    libraries = re.findall(r"=> (\S*slurm\S*)", subprocess.run(["ldd", sbatch], capture_output=True, text=True).stdout)
    known = b"".join(Path(file).read_bytes() for file in [sbatch, *libraries])
    named = set(re.findall(r"\bSBATCH_[A-Z_]+", (ROOT / "slurm/cluster.env.example").read_text()))
    assert named and not [name for name in named if name.encode() + b"\0" not in known]


@pytest.mark.slow
def test_the_tasks_of_an_array_share_the_runs_of_a_study(cluster: Cluster, tmp_path: Path) -> None:
    """Two runs of the debug model, one a task, which resume where they were; then the tables of all."""
    corpus = f"data.shards={tmp_path}/clips"
    make_corpus(tmp_path / "clips", 8, SyntheticSpec(mode="one_mover"))
    objectives = "study.objectives={pixels: ['objective.terms={pixels: 1}']}"
    data = f"data.train={tmp_path}/clips, data.test={tmp_path}/clips, data.workers=0"
    arguments = [
        f"run.dir={tmp_path}/study",
        f"study.set=[{corpus}, train.steps=2, train.global_batch_size=4, train.micro_batch_size=4]",
        objectives,
        f"study.evaluations={{knn: {{command: knn, set: [{data}, data.label=truth.objects.0.shape]}}}}",
        "study.parallel=1",
    ]
    options = ["--nodes=1", "--array=0-1"]
    job = cluster.submit(
        "study.sh", tmp_path, {"TGM_TASKS": "2"}, "tests/study/tiny.yaml", *arguments, options=options
    )
    for task in (0, 1):
        assert cluster.finish(f"{job}_{task}", 900) == "COMPLETED", log_of(tmp_path)
        assert f"part {task} of 2 is done" in log_of(tmp_path)
    done = cluster.run(
        sys.executable, "-m", "tgm_scale", "study", "--config", "tests/study/tiny.yaml", "--tables", *arguments
    )
    assert re.search(r"tube\+pixels \| 0\.\d+ ± 0\.\d+", done), done
