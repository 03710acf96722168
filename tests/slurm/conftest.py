"""A SLURM cluster of three simulated nodes for the tests of this folder, and a corpus that its jobs train on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from simulated import ROOT, Cluster

from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video

NEEDED = ("sbatch", "srun", "scontrol", "slurmctld", "slurmd", "munged")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm slurm-client munge")
    folder = Path(tempfile.mkdtemp(prefix="simulated-cluster-"))
    script = str(ROOT / "tests/slurm/cluster.sh")
    subprocess.run([script, "start", str(folder), str(_free_ports())], check=True, timeout=60)
    try:
        yield Cluster(folder)
    finally:
        subprocess.run([script, "stop", str(folder)], check=True, timeout=60)
        shutil.rmtree(folder)


def _free_ports() -> int:
    """The first of four neighbouring ports that nobody listens on. Each process of pytest-xdist looks through its own:
    jobs are numbered from there on, and no two of them meet at one MASTER_PORT."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(17000 + 1000 * worker, 18000 + 1000 * worker, 10):
        try:
            for port in range(first, first + 4):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 clips in 3 shards: textures that move."""
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    with ShardWriter(folder, clips_per_shard=10) as writer:
        for i in range(30):
            image = (np.random.default_rng(i).random((8, 8, 3)) * 255).repeat(12, 0).repeat(16, 1)
            frames = np.stack([np.roll(image, (t * (i % 3), t * 2), (0, 1)) for t in range(14)]).astype(np.uint8)
            writer.write(
                f"clip{i:03d}",
                {"mp4": encode_video(frames, 12), "json": {"captions": [f"texture {i}"], "label": f"texture {i % 2}"}},
            )
    return folder
