"""Sums of members: what is read is what was indexed, or its sample is left out and named."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
from loaded import CLIPS, by_step, load, write_corpus
from tars import make_corpus

from tgm_scale.cli import main
from tgm_scale.contracts import Problem
from tgm_scale.data.access import storage
from tgm_scale.data.shards import index_cache
from tgm_scale.data.shards.index import Corpus, DamagedMember, SampleRef
from tgm_scale.data.shards.inventory import captions_of_some, examples
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.evaluation.labelled import read_captions
from tgm_scale.evaluation.views import Decoder, Decoding, Views

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("made"), CLIPS, clips_per_shard=12)


def damage(corpus: Corpus, name: str, extension: str, at: float = 0.5) -> str:
    """Flip one bit in the middle of a member; its shard keeps its size and its ends."""
    ref = next(ref for ref in every(corpus) if ref.key == name)
    offset, size = ref.members[extension]
    tar = Path(ref.shard)
    data = bytearray(tar.read_bytes())
    assert offset >= 512 and offset + size <= len(data) - (1 << 14), "else it is another shard by its mark"
    data[offset + int(at * size)] ^= 1
    tar.write_bytes(data)
    return ref.name


def every(corpus: Corpus) -> list[SampleRef]:
    return [corpus.sample(shard, row) for shard, count in enumerate(corpus.counts) for row in range(count)]


def without_sums(folder: Path) -> None:
    """The indices as versions before wrote them."""
    for path in folder.glob("*.index.jsonl"):
        head, *lines = (json.loads(line) for line in path.read_bytes().splitlines())
        for line in lines:
            del line["crc32"]
        del head["blake2b"]
        text = "\n".join(json.dumps(line, separators=(",", ":")) for line in [head, *lines])
        path.write_text(text + "\n")


@pytest.mark.parametrize(("extension", "workers"), [("mp4", 0), ("mp4", 1), ("json", 0), ("tgm.npy", 0)])
def test_a_flipped_bit_of_a_member_costs_its_sample_which_is_named(
    made: Path, tmp_path: Path, extension: str, workers: int
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(made, folder)
    corpus = open_corpus(folder)
    whole = by_step(load([corpus]))
    name = damage(corpus, "c02", extension)
    changed = load([open_corpus(folder)], workers=workers)
    found = by_step(changed)
    read = extension != "tgm.npy"  # the maps are not asked for
    for step, batches in whole.items():
        for before, after in zip(batches, found[step]):
            for old, new in zip(before, after):
                assert (old == new) == (old[0] != name or not read)
                assert old[0] != name or new[3] == (0.0 if read else 1.0)
    problems = [problem for _, batches in load([open_corpus(folder)]) for b in batches for problem in b.problems]
    named = [problem for problem in problems if problem.key == name]
    assert bool(named) == read and all(each.reason == "damaged_member" for each in named)
    assert all(f"the bytes of {extension} are others" in each.detail for each in named)


def test_an_older_index_is_read_as_it_is_and_the_corpus_is_the_same(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(made, folder)
    before = open_corpus(folder)
    rows = by_step(load([before]))
    without_sums(folder)
    (folder / "shards.catalogue.json").unlink()
    kept = {path.name: path.read_bytes() for path in folder.glob("*.index.jsonl")}
    after = open_corpus(folder)
    assert after.fingerprint == before.fingerprint and after.marks == before.marks
    assert by_step(load([after])) == rows
    assert {path.name: path.read_bytes() for path in folder.glob("*.index.jsonl")} == kept, "not made anew"
    assert all(not ref.sums for ref in every(after))
    damage(after, "c02", "json", at=0.0)
    after.read(every(after)[2], ["json"])  # nobody can know


def test_check_gives_foreign_shards_their_sums_and_finds_what_is_damaged_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_corpus(tmp_path / "c", [40, 40])
    command = ["shards", "check", "--shards", str(folder), "--max-broken", "1", "--workers", "1"]
    before = open_corpus(folder).fingerprint
    assert main(command) == 0
    assert "sums of the members were added to the indices of 2 shards" in capsys.readouterr().out
    corpus = open_corpus(folder)
    assert corpus.fingerprint == before
    for ref in every(corpus):
        assert ref.sums == {name: zlib.crc32(data) for name, data in corpus.read(ref, list(ref.members)).items()}
    damage(corpus, "0_0002", "json")
    report = tmp_path / "report.json"
    assert main([*command, "--report", str(report)]) == 0
    assert "added" not in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert [name for name, _ in found["broken"]["damaged_member"]] == ["00000/0_0002"]
    assert found["broken"]["not_a_video"] and found["without_caption"] == [] and found["doubles"] == []


def test_sums_of_shards_that_cannot_be_written_beside_are_kept_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_corpus(tmp_path / "c", [3])
    corpus = open_corpus(folder)
    beside = (folder / "00000.index.jsonl").read_bytes()
    write = storage.write_atomically

    def refused(path: Path, *rest: object, **more: object) -> None:
        if path.parent == folder:
            raise PermissionError(path)
        write(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "write_atomically", refused)
    index_cache.add_sums(corpus.shards[0], {row: {"mp4": row} for row in range(3)})
    assert (folder / "00000.index.jsonl").read_bytes() == beside
    assert [ref.sums for ref in every(open_corpus(folder))] == [{"mp4": row} for row in range(3)]


def test_whoever_reads_a_damaged_sample_leaves_it_out_by_name(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(made, folder)
    corpus = open_corpus(folder)
    name = damage(corpus, "c00", "json")
    with pytest.raises(DamagedMember, match=rf"{name}: damaged_member: .*delete its \.index\.jsonl"):
        corpus.read(every(corpus)[0], ["mp4", "json"])
    assert isinstance(DamagedMember(Problem(name, "damaged_member")), ValueError), "a user's mistake where it stops"
    values, problems = read_captions(corpus)
    assert name not in values and [p.reason for p in problems if p.key == name] == ["damaged_member"]
    assert name not in captions_of_some(corpus) and f"{name}: damaged_member" in examples(corpus)
    other = damage(corpus, "c01", "mp4")
    with Decoder(Decoding(Views(2, 8, 1))) as decoder:
        found = list(decoder.decode(corpus, every(corpus)[:3]))
    assert isinstance(found[1], Problem) and (found[1].key, found[1].reason) == (other, "damaged_member")
    assert not isinstance(found[0], Problem) and not isinstance(found[2], Problem)


def test_a_damaged_sample_is_not_copied_into_new_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "c", tmp_path / "new"
    with ShardWriter(folder) as writer:
        for number in range(4):
            writer.write(f"c0{number}", {"mp4": bytes(9000), "json": {"label": "archery"}})
    name = damage(open_corpus(folder), "c01", "mp4")
    assert main(["shards", "caption", "--shards", str(folder), "--output", str(output), "--classes", "label"]) == 0
    said = capsys.readouterr()
    assert f"left out: {name}: damaged_member" in said.err
    assert "3 clips captioned, 1 clips left out (damaged_member)" in said.out
    assert [ref.key for ref in every(open_corpus(output))] == ["c00", "c02", "c03"]
    assert json.loads((output / "00000.left_out.jsonl").read_text())["key"] == name
    assert "1 of 4 clips are damaged and were left out" in said.out


def test_damaged_clips_are_judged_by_the_whole_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither stops nor tasks change the verdict, and a shard of damaged clips alone is not begun at every start."""
    folder, output = tmp_path / "c", tmp_path / "new"
    with ShardWriter(folder, clips_per_shard=2) as writer:
        for number in range(6):
            writer.write(f"c0{number}", {"mp4": bytes(60_000), "json": {"label": "archery"}})
    tar, corpus = folder / "00001.tar", open_corpus(folder)
    data = bytearray(tar.read_bytes())
    for row in range(2):
        data[corpus.sample(1, row).members["mp4"][0] + 30_000] ^= 1  # far from both ends, which are the shard's mark
    tar.write_bytes(data)
    given = ["shards", "caption", "--shards", str(folder), "--output", str(output), "--classes", "label"]
    for task in ("1", "0", "2"):
        assert main([*given, "--tasks", "3", "--task", task, "--max-left-out", "0.4"]) == 0
    assert not (output / "00001.tar").exists()
    capsys.readouterr()
    for limit, code in (("0.4", 0), ("0.2", 2), ("0.2", 2)):
        assert main([*given, "--max-left-out", limit]) == code
        said = capsys.readouterr()
        assert "0 of this task's 3 are to be made" in said.out and "2 of 6 clips are damaged" in said.out + said.err
        assert ("; more than --max-left-out=0.2" in said.err) == (code == 2)


@pytest.mark.parametrize(("changed", "sums"), [("padding", True), ("a member", True), ("all", False)])
def test_a_shard_whose_ends_are_others_is_said_and_keeps_its_sums_where_it_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str, sums: bool
) -> None:
    folder = write_corpus(tmp_path / "c", 5)
    before = open_corpus(folder)
    places = [place for ref in every(before) for name, place in ref.members.items() if name != "mp4"]
    capsys.readouterr()
    tar = folder / "00000.tar"
    data = bytearray(tar.read_bytes())
    at = {"padding": [len(data) - 600], "a member": [places[-1][0] + 5], "all": [at + 5 for at, _ in places]}
    for each in at[changed]:
        data[each] ^= 1
    tar.write_bytes(data)
    corpus = open_corpus(folder)
    said = capsys.readouterr().err
    assert "00000.tar: its size or its ends are not those of the file that was indexed" in said
    assert ("rebuilt, with the sums" in said) == sums and corpus.fingerprint != before.fingerprint
    assert all(bool(ref.sums) == sums for ref in every(corpus))
    if changed == "a member":
        with pytest.raises(DamagedMember):
            corpus.read(every(corpus)[-1], list(every(corpus)[-1].members))
    open_corpus(folder)
    assert not capsys.readouterr().err, "once"
