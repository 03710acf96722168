"""Commands that see no tensor import no torch: it takes 2 seconds of a core, and the launcher's script asks `config`
of each node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from made_run import made_run, row

from tgm_scale.benchmarks.clips import VideoFormat, make_shards

_RUN = """
import sys
from tgm_scale import cli
if __name__ == "__main__":
    code = cli.main(sys.argv[1:])
    heavy = {"torch", "transformers", "deepspeed", "matplotlib"} & set(sys.modules)
    assert not heavy, f"{sys.argv[1:]} imports {heavy}"
    sys.exit(code)
"""


def test_a_command_that_sees_no_tensor_imports_no_torch(tmp_path: Path) -> None:
    runs = [str(made_run(tmp_path / name, [row(step) for step in range(1, 9)])) for name in "ab"]
    shards = make_shards(tmp_path / "shards", 2, VideoFormat(64, 48, seconds=0.5))
    (tmp_path / "run.py").write_text(_RUN)
    for words, said in (
        (["config", "--config", "debug", "--key", "run.dir"], "runs/debug"),
        (["status", runs[0]], "8 of 18"),
        (["compare", *runs], "loss"),
        (["shards", "check", "--shards", str(shards), "--frames", "2"], "2 samples in 1 shards"),
    ):
        command = [sys.executable, str(tmp_path / "run.py"), *words]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "imports" not in ended.stderr and said in ended.stdout, ended.stdout + ended.stderr


def test_a_pretraining_without_pictures_imports_no_plots() -> None:
    code = "import sys, tgm_scale.training.pretraining; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
