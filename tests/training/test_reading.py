"""Of a checkpoint a rank reads what it looks at: the files are mapped, not loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tgm_scale.checkpoints.checkpoint import Progress, Reader
from tgm_scale.checkpoints.folders import folder_of
from tgm_scale.checkpoints.manifest import FORMAT
from tgm_scale.checkpoints.saver import Pending
from tgm_scale.checkpoints.share import _owners
from tgm_scale.runtime.distributed import ProcessInfo


def resident(file: Path) -> int:
    """Bytes of a mapped file that this process has touched."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="needs Linux' /proc")
def test_a_slice_of_a_tensor_is_read_alone(tmp_path: Path) -> None:
    """As one rank of eight at stage 3 reads its eighth of a weight and leaves the others."""
    file = tmp_path / "state-00000-of-00001.safetensors"
    parts = {f"block.{part}": torch.ones(4_000_000) for part in ("weight", "exp_avg", "exp_avg_sq")}
    save_file(parts, file)
    entry = {"name": file.name, "bytes": file.stat().st_size, "blake2b": ""}
    manifest = {"format": FORMAT, "progress": {"step": 1, "skipped": {}}, "files": [entry]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    reader = Reader(tmp_path)
    own = [reader.tensor("block", part)[500_000:1_000_000].clone() for part in ("weight", "exp_avg", "exp_avg_sq")]
    assert 6_000_000 <= resident(file) < file.stat().st_size / 3, "of 48 MB three slices of 2 MB, in large pages"
    assert float(torch.stack(own).sum()) == 1_500_000


def test_a_rank_opens_the_files_of_what_it_reads(tmp_path: Path) -> None:
    """Of many ranks' files; all of them are looked at by rank 0 alone."""
    entries = []
    for rank, names in enumerate((["a.weight"], ["b.weight"], [])):
        file = tmp_path / f"state-{rank:05d}-of-00003.safetensors"
        save_file({name: torch.ones(3) for name in names}, file)
        entries.append({"name": file.name, "bytes": file.stat().st_size, "tensors": names})
    manifest = {"format": FORMAT, "progress": {"step": 1, "skipped": {}}, "files": entries}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    few = Reader(tmp_path, checked=False)
    assert few.opened == 0 and few.names() == ["a", "b"]
    assert few.tensor("b").tolist() == [1, 1, 1] and few.opened == 1
    assert Reader(tmp_path).opened == 3
    whole = (tmp_path / entries[0]["name"]).read_bytes()
    (tmp_path / entries[0]["name"]).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"state-00000-of-00003\.safetensors: a git LFS pointer, not the file: run"):
        Reader(tmp_path)
    (tmp_path / entries[0]["name"]).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="missing or cut short"):
        Reader(tmp_path)
    (tmp_path / entries[0]["name"]).unlink()
    assert few.tensor("b").tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"state-00000-of-00003\.safetensors: missing or cut short"):
        few.tensor("a")
    with pytest.raises(ValueError, match="missing or cut short"):
        Reader(tmp_path)


def test_ranks_without_a_parameter_write_no_file(tmp_path: Path) -> None:
    """A model of 300 parameters on 4,096 ranks has 300 files, and a start reads as many."""
    sizes = {"a": 3, "b": 2}
    owners = _owners(sizes, 4)
    assert owners == {"a": 0, "b": 1}
    saves = [Pending(tmp_path, Progress(step=7), {}, ProcessInfo(k, 4, 0, torch.device("cpu")), 2) for k in range(4)]
    assert saves[0].make_folder() is None
    for rank, save in enumerate(saves):
        save.start({f"{name}.weight": torch.ones(size) for name, size in sizes.items() if owners[name] == rank})
    assert saves[0].commit([save.wait() for save in saves]) is None
    folder = folder_of(tmp_path, 7)
    assert len(list(folder.glob("*.safetensors"))) == 2
    reader = Reader(folder)
    assert reader.names() == ["a", "b"] and reader.tensor("b").tolist() == [1, 1]
    reader.verify()
