"""The import law of docs/ARCHITECTURE.md, held by reading every import in the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tgm_scale"
SOURCES = sorted(PACKAGE.rglob("*.py"))

WINGS = {"data", "guidance", "masking", "models", "objectives"}
UPPER = {"evaluation", "conversion", "report"}
MAY_IMPORT = {
    "contracts": set(),
    "runtime": {"runtime"},
    **{wing: {"contracts", "runtime", wing} for wing in WINGS},
    "config": set(),
    "training": {"contracts", "runtime", "config", "training"} | WINGS,
    **{floor: {"contracts", "runtime", "config", "training"} | WINGS | UPPER for floor in UPPER},
}
EXCEPTIONS = {("objectives", "tgm_scale.models.patches")}

# module prefix of a heavy dependency -> the only files that may import it
IMPORT_SITES = {
    "deepspeed": {"training/engine.py", "training/engine_state.py", "training/extensions.py"},
    "transformers": {
        "guidance/towers.py",
        "guidance/clip_training.py",
        "guidance/train_clip.py",
        "conversion/huggingface.py",
    },
    "cv2": {"guidance/flow.py"},
    "torchvision": {"guidance/flow.py"},
    "av": {f"data/{name}.py" for name in ("decode", "encode", "frame_times", "motion", "pictures", "source")},
    "torchcodec": {"data/torchcodec_frames.py"},
    "webdataset": {"data/shards.py", "data/loader.py"},
    "timm": {"evaluation/augment.py", "conversion/timm.py"},
    "flash_attn": {"models/attention.py"},
    "matplotlib": {"report/render.py", "report/plots.py"},
    "jinja2": {"report/html.py"},
}


def imports(file: Path) -> list[str]:
    """Every module that a file imports, at any depth; `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def floor_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_floor_imports_only_what_the_law_allows(file: Path) -> None:
    here = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if here in ("cli", "__init__", "__main__"):
        return
    for module in imports(file):
        if not module.startswith("tgm_scale.") or any(module.startswith(e) and here == h for h, e in EXCEPTIONS):
            continue
        assert floor_of(module) in MAY_IMPORT[here], f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("dependency", IMPORT_SITES)
def test_a_heavy_dependency_is_imported_where_the_law_says(dependency: str) -> None:
    sites = {
        str(file.relative_to(PACKAGE))
        for file in SOURCES
        if any(module.split(".")[0] == dependency for module in imports(file))
    }
    assert sites <= IMPORT_SITES[dependency]


def test_nothing_imports_the_face() -> None:
    for file in SOURCES:
        if file.name != "__main__.py":
            assert not [m for m in imports(file) if m.startswith(("tgm_scale.cli", "tools"))], file


def test_the_law_can_be_broken(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from tgm_scale.data.loader import ClipLoader\n")
    assert floor_of(imports(bad)[0]) == "data"
    assert "data" not in MAY_IMPORT["masking"]


def test_nothing_is_unpickled_and_no_shell_is_started() -> None:
    for file in [*SOURCES, *sorted((ROOT / "tools").glob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            where = f"{file.relative_to(ROOT)}:{node.lineno}"
            assert name not in ("pickle.load", "pickle.loads", "os.system", "os.popen", "eval", "exec"), where
            assert keywords.get("shell") != "True", where
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", where
            if name in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle", "False") == "False", where
