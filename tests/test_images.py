"""containers/: both recipes make one image, of files that are there, the code last; and it builds, where told how to.

    TGM_IMAGE_BUILD="docker build --build-arg BASE=ubuntu:24.04" pytest tests/test_images.py

builds all but flash-attn, which needs CUDA's compiler, on that base.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "containers/Dockerfile").read_text()
DEFINITION = (ROOT / "containers/tgm_scale.def").read_text()
INSTALL = ROOT / "containers/install.sh"
CODE = ["tgm_scale", "configs", "tools", "slurm"]


def steps(stage: str) -> list[str]:
    """What a stage of the Dockerfile copies and runs, after what its own base does."""
    found = re.search(rf"^FROM (\S+) AS {stage}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found is not None
    before = [] if found[1] == "${BASE}" else steps(found[1])
    own = []
    for instruction, rest in re.findall(r"^(COPY|RUN) (.*)$", found[2], re.MULTILINE):
        words = rest.split()
        own += words[:-1] if instruction == "COPY" else [f"install {words[1]}"]
    return [*before, *own]


def section(name: str) -> str:
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", DEFINITION, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_both_recipes_copy_and_install_the_same() -> None:
    copied = [line.split()[0] for line in section("files").splitlines() if line.strip()]
    stages = [f"install {stage}" for stage in re.findall(r"containers/install\.sh (\w+)", section("post"))]
    full = steps("full")
    assert sorted(copied) == sorted(step for step in full if not step.startswith("install"))
    assert stages == [step for step in full if step.startswith("install")]
    assert steps("slim") == [step for step in full if step != "install flash"]
    for line in section("files").splitlines():
        source, _, target = line.strip().partition(" ")
        assert not source or target == f"/src/tgm_scale/{source}"


def test_the_code_comes_last() -> None:
    """So that a change of it builds neither the dependencies nor flash-attn anew."""
    assert steps("full")[-6:] == ["install flash", *CODE, "install code"]
    assert not set(CODE) & set(steps("full")[:-5])


def test_the_build_arguments_and_labels_are_the_same() -> None:
    ours = dict(re.findall(r"^ *(\w+)=(\S+)$", section("arguments"), re.MULTILINE))
    theirs = {name: value.strip('"') for name, value in re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE)}
    assert ours == theirs and set(ours) == {"BASE", "MAX_JOBS", "FLASH_ATTN_CUDA_ARCHS"}
    labels = set(re.findall(r"org\.opencontainers\.image\.[\w.]+", DOCKERFILE))
    assert labels == set(re.findall(r"org\.opencontainers\.image\.[\w.]+", DEFINITION)) and len(labels) == 4
    read = set(re.findall(r"\$\{(\w+):\?\}", INSTALL.read_text()))
    assert read == {"MAX_JOBS", "FLASH_ATTN_CUDA_ARCHS"}


def test_what_runs_is_not_root() -> None:
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[2:]:
        assert "\nUSER tgm\n" in stage and "useradd" in stage


def test_only_what_is_copied_is_sent_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert sent == {step for step in steps("full") if not step.startswith("install")}
    assert all((ROOT / name).exists() for name in sent)
    assert "slurm/cluster.env" in lines


def test_the_libraries_of_infiniband_are_installed() -> None:
    text = INSTALL.read_text()
    assert all(f" {name}" in text for name in ("libibverbs1", "ibverbs-providers", "librdmacm1"))
    assert "EFA is not covered" in text


def test_an_unknown_stage_is_refused() -> None:
    done = subprocess.run([str(INSTALL), "everything"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "containers/install.sh dependencies" in done.stderr


@pytest.mark.slow
def test_the_image_builds(tmp_path: Path) -> None:
    command = os.environ.get("TGM_IMAGE_BUILD", "")
    if not command:
        pytest.skip("TGM_IMAGE_BUILD does not say how to build an image")
    build = [
        *shlex.split(command),
        "--file",
        "containers/Dockerfile",
        "--target",
        "slim",
        "--tag",
        "tgm_scale_slim",
        ".",
    ]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    (tmp_path / "build.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
