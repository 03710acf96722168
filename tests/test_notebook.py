"""The notebook runs from an empty folder, and has no outputs in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "notebooks" / "first_look.ipynb"
RUN = """import json, sys
from tgm_scale.runtime.compat import prepare_torchvision
prepare_torchvision()
names = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin), 1):
    exec(compile(source, f"code cell {number}", "exec"), names)
hidden, completed, video, mask = (names[name] for name in ("hidden", "completed", "video", "mask"))
print(json.dumps({
    "shares": [round(one.float().mean().item(), 2) for one in hidden.values()],
    "hits": float(names["relevance"][0][hidden["text_guided"]].mean() > names["relevance"][0].mean()),
    "changed": bool((completed != video).any()),
    "tokens": mask.visible.shape[1] + mask.target.shape[1],
    "knn": names["figures"]["top1"]["value"],
}))
"""


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(FILE.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    return notebook["cells"]


def test_there_is_no_output_in_it() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_its_cells_run_one_after_another_in_an_empty_folder(tmp_path: Path) -> None:
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(sources), cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["shares"] == [0.59, 0.59, 0.6] and told["hits"] and told["changed"] and told["tokens"] == 256
    assert 0 <= told["knn"] <= 1
    written = tmp_path / "runs/first-look"
    page = (written / "report.html").read_text()
    assert "<h2>Reconstructions</h2>" in page and (written / "run/pictures/step-00000010.png").is_file()
    assert [one.name for one in tmp_path.iterdir()] == ["runs"] and list((tmp_path / "runs").iterdir()) == [written]
