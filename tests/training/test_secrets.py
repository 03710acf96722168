"""Passwords and signatures in addresses of shards: no file of a run has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale import cli, config
from tgm_scale.assembly.parts import checkpoint_metadata
from tgm_scale.assembly.run_plan import shape_of
from tgm_scale.runs import run_data, run_folder

ADDRESS = "https://me:passw0rd@host/a/00000.tar?X-Amz-Expires=60&X-Amz-Signature=5ec2e7"


def settings(folder: Path, address: str) -> list[str]:
    return [f"run.dir={folder}", f"data.shards='{address}'", f"knn.train='{address}'", f"knn.test='{address}'"]


def test_no_file_of_a_run_has_them_and_a_new_signature_goes_on(tmp_path: Path) -> None:
    for address in (ADDRESS, ADDRESS.replace("5ec2e7", "0ther")):
        found = config.load("debug", settings(tmp_path / "run", address))
        folder = run_folder.open_folder(found)
        run_folder.write_start(folder, found, [{"name": "a", "first": [address]}], {}, 0)
        (folder / "facts").write_text(str(checkpoint_metadata(found, shape_of(found))))
        (folder / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
        written = "".join(file.read_text() for file in folder.rglob("*") if file.is_file())
        assert "https://***@host/a/00000.tar?X-Amz-Expires=***&X-Amz-Signature=***" in written
        assert not [secret for secret in ("passw0rd", "5ec2e7", "0ther", "//me:") if secret in written]


@pytest.mark.parametrize(
    "path", ["a/" + "ü" * 20 + "/{00000..00099}.tar", "My Videos/a.tar", "it's/a.tar", 'a"b/a.tar']
)
@pytest.mark.parametrize("query", ["X-Amz-Signature=SECRET", "SECRET", "k=it's SECRET&sig=SECRET", 'k=v"SECRET'])
def test_no_address_hides_them_and_the_run_goes_on(tmp_path: Path, path: str, query: str) -> None:
    """YAML and JSON escape letters and end lines amid an address; a folder of an earlier version has the secrets."""
    address = f"https://host/{path}?{query}"
    found = config.from_tree(
        {
            "run": {"dir": str(tmp_path / "run")},
            "data": {"shards": address},
            "objective": {"contrastive_weight": 0},
            "knn": {"every": 2, "train": address, "test": address},
            "train": {"steps": 1},
        }
    )
    for _ in range(2):
        folder = run_folder.open_folder(found)
        run_folder.write_start(folder, found, [{"name": "a", "first": [address]}], {}, 0)
        assert "SECRET" not in "".join(file.read_text() for file in folder.rglob("*") if file.is_file())
        assert run_data.read(folder)[0]["name"] == "a"
        assert config.read_tree(folder / "config.yaml")["data"]["shards"].startswith(f"https://host/{path}?")
    (folder / "config.yaml").write_text(config.dump(found))
    run_folder.open_folder(found)


def test_the_settings_of_a_tuning_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its minutes are over before the first trial."""
    given = ["--config", "debug", "--dir", str(tmp_path / "tune"), "--processes", "1", "--minutes", "0.001"]
    given += ["--stages", "1", *settings(tmp_path / "run", ADDRESS.replace("host", "127.0.0.1:9"))]
    given += ["data.patience=1", "objective.contrastive_weight=0", "masking.recipe=tube", "guidance.towers=null"]
    cli.main(["tune", *given])
    said = "".join(capsys.readouterr())
    written = "".join(file.read_text() for file in (tmp_path / "tune").rglob("*") if file.is_file())
    assert "127.0.0.1:9/a/00000.tar" in written
    assert not [secret for secret in ("passw0rd", "5ec2e7") if secret in said + written]


def test_the_printed_configuration_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--config", "debug", *settings(tmp_path, ADDRESS)]) == 0
    assert cli.main(["config", "--config", "debug", *settings(tmp_path, ADDRESS), "--key", "data.shards"]) == 0
    assert cli.main(["config", "--config", "debug", *settings(tmp_path, ADDRESS), f"data.frames='{ADDRESS}'"]) == 2
    said = "".join(capsys.readouterr())
    assert "host/a/00000.tar" in said and "passw0rd" not in said and "5ec2e7" not in said
