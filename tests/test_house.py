"""The import rules of docs/ARCHITECTURE.md, held by reading every import in the source."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tgm_scale"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# layer -> the layers that it may import; lower layers stand first
MAY_IMPORT: dict[str, set[str]] = {"contracts": set(), "runtime": set()}
_BASE = {"contracts", "runtime"}
for _layer in ("config", "data", "guidance", "masking", "models"):
    MAY_IMPORT[_layer] = _BASE
MAY_IMPORT["objectives"] = _BASE | {"models"}
MAY_IMPORT["demo.corpus"] = _BASE | {"data"}
MAY_IMPORT["demo.clip"] = _BASE
MAY_IMPORT["engine"] = _BASE | {"config"}
MAY_IMPORT["checkpoints"] = _BASE | {"engine"}
MAY_IMPORT["conversion"] = _BASE | {"models", "checkpoints"}
_WINGS = _BASE | {"config", "data", "guidance", "masking", "models", "objectives", "demo.corpus"}
MAY_IMPORT["runs"] = _BASE | {"config", "data", "guidance", "checkpoints"}
MAY_IMPORT["assembly"] = _WINGS | {"engine", "checkpoints", "conversion"}
MAY_IMPORT["planning"] = MAY_IMPORT["assembly"] | {"assembly"}
# runs: the page of a run reads its folder; checkpoints and conversion: the card of an exported model
MAY_IMPORT["report"] = _WINGS | {"assembly", "planning", "runs", "checkpoints", "conversion"}
MAY_IMPORT["evaluation"] = MAY_IMPORT["planning"] | {"runs", "planning", "report"}
MAY_IMPORT["python"] = MAY_IMPORT["evaluation"] | {"evaluation"}  # what `import tgm_scale` gives
MAY_IMPORT["training"] = MAY_IMPORT["evaluation"] - {"report"} | {"evaluation"}
_HIGH = MAY_IMPORT["training"] | {"training", "report"}
for _layer in ("finetuning", "corpora", "preview"):
    MAY_IMPORT[_layer] = _HIGH
MAY_IMPORT["preflight"] = _HIGH | {"finetuning"}
MAY_IMPORT["benchmarks"] = _HIGH | {"demo.clip"}
MAY_IMPORT["tuning"] = _HIGH | {"benchmarks"}
MAY_IMPORT["study"] = _HIGH | {"finetuning"}
MAY_IMPORT["demo"] = _HIGH | {"demo.corpus", "demo.clip"}
MAY_IMPORT["commands"] = set(MAY_IMPORT) - {"demo"}
FREE = {"cli", "__init__", "__main__"}

# module prefix of a heavy dependency -> the only files that may import it
IMPORT_SITES = {
    "deepspeed": {"engine/build.py", "engine/state.py", "engine/extensions.py"},
    "transformers": {
        "guidance/towers.py",
        "demo/clip/training.py",
        "conversion/huggingface.py",
        "corpora/captions.py",
        "benchmarks/towers.py",
    },
    "cv2": {"guidance/flow.py"},
    "torchvision": {"guidance/flow.py"},
    "av": {f"data/video/{name}.py" for name in ("decode", "encode", "frame_times", "motion", "pictures", "source")},
    "webdataset": {"data/shards/tars.py", "benchmarks/pipelines.py"},
    "spdl": {"benchmarks/spdl.py"},
    "timm": {"finetuning/augment.py", "conversion/timm.py", "engine/build.py"},
    "flash_attn": {"models/attention.py"},
    "matplotlib": {"report/render.py", "demo/plots.py", "benchmarks/growth_figure.py"},
    "jinja2": {"report/html.py"},
    "wandb": {"runs/boards.py"},
}


@functools.cache
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


def layer_of(module: str) -> str:
    """Such as demo.corpus of tgm_scale.demo.corpus.make, and demo of tgm_scale.demo.story."""
    parts = module.split(".")[1:]
    return next((name for name in (".".join(parts[:2]), parts[0] if parts else "") if name in MAY_IMPORT), "")


def layer_of_file(file: Path) -> str:
    return layer_of(".".join(file.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_layer_imports_only_allowed_layers(file: Path) -> None:
    if file.relative_to(PACKAGE).with_suffix("").as_posix() in FREE:
        return
    here = layer_of_file(file)
    assert here, f"{file.relative_to(ROOT)} belongs to no layer"
    for module in imports(file):
        if module.startswith("tgm_scale.") and layer_of(module) != here:
            assert layer_of(module) in MAY_IMPORT[here], f"{file.relative_to(ROOT)} imports {module}"


def test_the_rules_name_every_layer_and_have_no_cycle() -> None:
    there = {layer_of_file(file) for file in SOURCES}
    assert set(MAY_IMPORT) == there - {""}
    for number, (layer, allowed) in enumerate(MAY_IMPORT.items()):
        assert allowed <= set(list(MAY_IMPORT)[:number]), layer


def test_a_folder_of_data_has_ten_files_at_most() -> None:
    folders = {file.parent for file in SOURCES if file.is_relative_to(PACKAGE / "data")}
    for folder in folders:
        assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= 10, folder


@pytest.mark.parametrize("dependency", IMPORT_SITES)
def test_a_heavy_dependency_is_imported_at_its_sites_alone(dependency: str) -> None:
    sites = {
        str(file.relative_to(PACKAGE))
        for file in SOURCES
        if any(module.split(".")[0] == dependency for module in imports(file))
    }
    assert sites == IMPORT_SITES[dependency]


def test_nothing_imports_the_command_line() -> None:
    for file in SOURCES:
        if file.name != "__main__.py":
            assert not [m for m in imports(file) if m.startswith(("tgm_scale.cli", "tools"))], file
        if file.name != "cli.py" and file.parent.name != "commands":
            assert not [m for m in imports(file) if m.startswith("tgm_scale.commands")], file


def test_tests_find_each_other_without_the_repository_on_the_path() -> None:
    """`pytest` puts a test's folder and this one on the path, and not the repository's root."""
    for file in Path(__file__).parent.rglob("*.py"):
        assert not [module for module in imports(file) if module.split(".")[0] == "tests"], file


def test_the_rules_can_be_broken(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from tgm_scale.data.loading.loader import ClipLoader\n")
    assert layer_of(imports(bad)[0]) == "data"
    assert "data" not in MAY_IMPORT["masking"]


# what opens files from outside, and the modules that alone may do so
OPENERS = {
    *(f"json.{name}" for name in ("load", "loads", "JSONDecoder")),
    *(f"numpy.{name}" for name in ("load", "fromfile", "memmap", "loadtxt", "genfromtxt", "fromregex")),
    *(f"numpy.lib.format.{name}" for name in ("read_array", "open_memmap")),
    *(f"yaml.{name}" for name in ("load", "load_all", "safe_load", "safe_load_all", "full_load", "unsafe_load")),
    *("torch.load", "torch.jit.load", "torch.export.load", "zipfile.ZipFile", "tarfile.open", "tarfile.TarFile"),
    *("safetensors.safe_open", "safetensors.deserialize", "safetensors.torch.load", "safetensors.torch.load_file"),
    *("PIL.Image.open", "PIL.ImageFile.Parser", "tomllib.load", "tomllib.loads"),
}
OPENING_METHODS = {"validate_json", "model_validate_json", "parse_raw", "parse_file"}  # of pydantic, whatever has them
OPENING_MODULES = {"tgm_scale/runtime/outside", "tgm_scale/runtime/tensors.py"}
EXCEPTIONS = {
    ("tgm_scale/benchmarks/order.py", "tarfile.open"): "writes the tar that it measures",
}


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each imported name of a file stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def openers(source: str) -> list[tuple[int, str]]:
    """Line and name of all in a source that opens files from outside, also where it is only passed on."""
    tree = ast.parse(source)
    names, found = names_of(tree), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            first, dot, rest = ast.unparse(node).partition(".")
            if (whole := names.get(first, first) + dot + rest) in OPENERS:
                found.append((node.lineno, whole))
            elif isinstance(node, ast.Attribute) and node.attr in OPENING_METHODS:
                found.append((node.lineno, node.attr))
    return found


def test_files_from_outside_are_opened_by_few_modules() -> None:
    for file in [*SOURCES, *sorted((ROOT / "tools").rglob("*.py"))]:
        where = file.relative_to(ROOT).as_posix()
        if where in OPENING_MODULES or any(where.startswith(f"{folder}/") for folder in OPENING_MODULES):
            continue
        for line, name in openers(file.read_text()):
            assert (where, name) in EXCEPTIONS, f"{where}:{line}: {name}: read it by tgm_scale.runtime.outside"


@pytest.mark.parametrize(
    "source",
    [
        "import json\nx = json.loads(y)",
        "import json as j\nx = j.load(y)",
        "from json import loads as read\nx = map(read, y)",
        "import numpy as np\nx = np.load(y)",
        "from PIL import Image\nx = Image.open(y)",
        "import PIL.Image\nx = PIL.Image.open(y)",
        "def f():\n    from safetensors.torch import load_file\n    return load_file(y)",
        "import yaml\nx = yaml.safe_load(y)",
        "from pydantic import TypeAdapter\nx = TypeAdapter(int).validate_json(y)",
        "from .z import Facts\nx = map(Facts.model_validate_json, y)",
        "import tarfile\nwith tarfile.open(y) as x:\n    pass",
    ],
)
def test_an_opener_is_seen_by_any_name(source: str) -> None:
    assert openers(source)


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


def test_text_is_read_and_written_as_utf_8() -> None:
    """Else a label or a path in Chinese is damage, or ends a run, in a Latin-1 locale."""
    for file in [*SOURCES, *sorted((ROOT / "tools").rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            if name not in ("read_text", "write_text") or "/proc" in ast.unparse(node):
                continue
            assert "encoding=" in ast.unparse(node), f"{file.relative_to(ROOT)}:{node.lineno}: encoding='utf-8'"


MOST_ARGUMENTS = 6  # self and cls not counted
MOST_LINES = 310  # of a file, which is read in one sitting


def test_a_function_takes_few_arguments_and_a_file_fits_in_one_sitting() -> None:
    for file in [*SOURCES, *sorted((ROOT / "tools").rglob("*.py"))]:
        text, where = file.read_text(), file.relative_to(ROOT)
        assert text.count("\n") <= MOST_LINES, where
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [argument.arg for argument in given if argument.arg not in ("self", "cls")]
                assert len(names) <= MOST_ARGUMENTS, f"{where}:{node.lineno}: {node.name}({', '.join(names)})"
