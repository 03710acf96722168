"""Preflight: a node that differs is named; what is wrong everywhere is no node's fault."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT, environment
from starts import Started

from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.preflight.command import BAD_NODE, SETUP_MISTAKE
from tgm_scale.preflight.node_checks import Report
from tgm_scale.preflight.verdict import diagnose, summary


def reports(nodes: int = 4, ranks_a_node: int = 2) -> list[Report]:
    """Those of a healthy cluster."""
    return [
        Report(
            rank,
            f"node{rank // ranks_a_node}",
            must_match={"torch": "2.13.0", "device": "H100"},
            measurements={"clock": 1000.0 + rank / 100, "FLOP/s": (700 + rank) * 1e12},
            gpu=f"GPU-{rank}",
        )
        for rank in range(nodes * ranks_a_node)
    ]


def test_a_healthy_cluster_passes() -> None:
    assert diagnose(reports(), []) == ({}, [])
    assert summary(reports()).startswith(
        "processes: 8 on H100, nodes: 4, 700 to 707 TFLOP/s a GPU, clocks within 0.07"
    )


def test_the_node_that_differs_is_named() -> None:
    found = reports()
    found[5].must_match["torch"] = "2.12.0"
    found[0].measurements["clock"] += 60
    found[3].measurements["FLOP/s"] = 300e12
    found[6].gpu = found[7].gpu
    bad, common = diagnose(found, ["node9"])
    assert bad == {
        "node0": ["its clock is +60 s off"],
        "node1": ["rank 3's GPU makes 300 TFLOP/s, the usual is 703"],
        "node2": ["torch is 2.12.0, elsewhere 2.13.0"],
        "node3": ["two processes have the same GPU: start as many tasks a node as it has GPUs"],
        "node9": ["a process there did not answer"],
    }
    assert common == []


def test_of_two_nodes_that_differ_the_first_is_right() -> None:
    found = reports(nodes=2, ranks_a_node=1)
    found[1].must_match["torch"] = "2.12.0"
    assert diagnose(found, [])[0] == {"node1": ["torch is 2.12.0, elsewhere 2.13.0"]}


def test_what_is_wrong_on_every_node_is_no_nodes_fault() -> None:
    found = reports()
    for report in found:
        report.problems = {"shards": f"no shards, says rank {report.rank}"}
    found[2].problems["GPU"] = "GPU 0: a matrix product came out wrong"
    bad, common = diagnose(found, [])
    assert bad == {"node1": ["GPU 0: a matrix product came out wrong"]}
    assert len(common) == 1 and common[0].startswith("no shards")


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_silent_process_makes_no_node_of_what_all_others_have(nodes: int) -> None:
    found = reports(nodes)
    for report in found:
        report.problems = {"shards": "no shards"}
    bad, common = diagnose(found, ["node9"])
    assert (bad, common) == ({"node9": ["a process there did not answer"]}, ["no shards"])
    bad, common = diagnose(found, ["node0"])
    assert (bad, common) == ({"node0": ["a process there did not answer"]}, ["no shards"])


def test_on_a_single_node_a_missing_gpu_is_its_fault_and_missing_shards_are_not() -> None:
    [report] = reports(nodes=1, ranks_a_node=1)
    report.problems = {"GPU": "no GPU", "shards": "no shards"}
    assert diagnose([report], []) == ({"node0": ["no GPU"]}, ["no shards"])


# Real processes from here on, each with the variables that srun gives its tasks.


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    with ShardWriter(folder) as writer:
        writer.write("clip", {"mp4": encode_video(np.zeros((8, 32, 32, 3), np.uint8), 8)})
    return folder


class Nodes:
    """Processes of a job, one a node."""

    def __init__(self, world_size: int):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.world_size = world_size

    def start(self, rank: int, *overrides: str, patience: int = 60) -> Started:
        place = {"SLURM_STEP_ID": "0", "SLURM_PROCID": rank, "SLURM_NTASKS": self.world_size, "SLURM_LOCALID": 0}
        names = {"SLURM_JOB_NODELIST": f"node[0-{self.world_size - 1}]", "SLURMD_NODENAME": f"node{rank}"}
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port}
        variables = {name: str(value) for name, value in (place | names | master).items()}
        command = ["-m", "tgm_scale", "preflight", "--config", str(ROOT / "configs/debug.yaml")]
        fixed = [f"--patience={patience}", "guidance.towers=null", "masking.recipe=tube", "data.synthetic=null"]
        command += [*fixed, "objective.contrastive_weight=0", "train.micro_batch_size=1", *overrides]
        return Started(command, environment() | variables, ROOT, into_one=True)


def ended(process: Started) -> tuple[int, str]:
    code = process.wait(timeout=100)
    return code, process.communicate()[0]


def test_two_healthy_nodes_pass_and_leave_nothing_behind(shards: Path, tmp_path: Path) -> None:
    nodes = Nodes(2)
    where = (f"data.shards={shards}", f"run.dir={tmp_path}/run")
    (code, said), (other, nothing) = (ended(p) for p in [nodes.start(rank, *where) for rank in (0, 1)])
    assert code == other == 0, said
    assert "processes: 2 on CPU, nodes: 2" in said and "all-reduce" in said and nothing == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_is_not_shared_is_named(shards: Path, tmp_path: Path) -> None:
    nodes = Nodes(2)
    both = [nodes.start(rank, f"data.shards={shards}", f"run.dir={tmp_path}/{rank}") for rank in (0, 1)]
    (code, said), (other, _) = map(ended, both)
    assert code == other == BAD_NODE
    assert f"bad node node1: run.dir={tmp_path}/1: what rank 0 wrote there is not seen" in said


def test_a_mistake_of_all_nodes_is_told_once(tmp_path: Path) -> None:
    nodes = Nodes(2)
    both = [nodes.start(rank, f"data.shards={tmp_path}/none", f"run.dir={tmp_path}/run") for rank in (0, 1)]
    (code, said), (other, nothing) = map(ended, both)
    assert code == other == SETUP_MISTAKE and nothing == ""
    assert said.count("no such file or folder") == 1 and "bad node" not in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_does_not_answer_is_named(shards: Path, tmp_path: Path, rank: int) -> None:
    """Each of two alone: rank 0 waits for the reports, rank 1 for rank 0."""
    process = Nodes(2).start(rank, f"data.shards={shards}", f"run.dir={tmp_path}/run", patience=3)
    code, said = ended(process)
    assert code == BAD_NODE, said
    assert f"bad node node{1 - rank}: " in said


def test_a_corpus_that_differs_on_one_node_is_named(shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "shards"
    with ShardWriter(other) as writer:
        writer.write("clip", {"mp4": encode_video(np.ones((9, 32, 32, 3), np.uint8), 8)})
    nodes = Nodes(2)
    both = [nodes.start(r, f"data.shards={s}", f"run.dir={tmp_path}/run") for r, s in enumerate((shards, other))]
    (code, said), _ = map(ended, both)
    assert code == BAD_NODE and "bad node node1: corpus shards is 1 samples, " in said
