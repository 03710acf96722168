"""Passwords and signatures in addresses of shards: no file of a run has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale import cli, config
from tgm_scale.training import build, run_folder

ADDRESS = "https://me:passw0rd@host/a/00000.tar?X-Amz-Expires=60&X-Amz-Signature=5ec2e7"


def settings(folder: Path, address: str) -> list[str]:
    return [f"run.dir={folder}", f"data.shards='{address}'", f"knn.train='{address}'", f"knn.test='{address}'"]


def test_no_file_of_a_run_has_them_and_a_new_signature_goes_on(tmp_path: Path) -> None:
    for address in (ADDRESS, ADDRESS.replace("5ec2e7", "0ther")):
        found = config.load("debug", settings(tmp_path / "run", address))
        folder = run_folder.claim(found)
        run_folder.describe(folder, found, [{"name": "a", "first": [address]}], {}, 0)
        (folder / "facts").write_text(str(build.facts(found)))
        (folder / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
        written = "".join(file.read_text() for file in folder.rglob("*") if file.is_file())
        assert "https://***@host/a/00000.tar?X-Amz-Expires=***&X-Amz-Signature=***" in written
        assert not [secret for secret in ("passw0rd", "5ec2e7", "0ther", "me:") if secret in written]


def test_the_printed_configuration_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--config", "debug", *settings(tmp_path, ADDRESS)]) == 0
    assert cli.main(["config", "--config", "debug", *settings(tmp_path, ADDRESS), "--key", "data.shards"]) == 0
    assert cli.main(["config", "--config", "debug", *settings(tmp_path, ADDRESS), f"data.frames='{ADDRESS}'"]) == 2
    said = "".join(capsys.readouterr())
    assert "host/a/00000.tar" in said and "passw0rd" not in said and "5ec2e7" not in said
