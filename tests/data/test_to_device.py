"""Batches on their way to a device: what is copied from is never written to, and the bits are the same."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from loaded import by_step, load, rows, write_corpus

from tgm_scale.contracts import Batch
from tgm_scale.data.loading.to_device import MAX_PENDING, PendingCopies, SharedBatches, ToDevice
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.opening import open_corpus

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return open_corpus(str(write_corpus(tmp_path_factory.mktemp("corpus") / "shards", 23)))


class Copy:
    """Stands for the event of a copy that is over when the test says so, or when somebody waits for it."""

    def __init__(self) -> None:
        self.over = self.waited = False

    def query(self) -> bool:
        return self.over

    def synchronize(self) -> None:
        self.over = self.waited = True


def batch_of(pixels: torch.Tensor) -> Batch:
    one = torch.zeros(len(pixels))
    return Batch(pixels, [""] * len(pixels), ["k"] * len(pixels), one.long(), one, one.long(), one, one)


def test_a_place_is_not_handed_out_while_a_copy_reads_from_it() -> None:
    memory, under_way, copies = SharedBatches((2, 3)), PendingCopies(), []
    for expected in range(3):
        place, pixels = memory.take()
        assert place == expected, "the copies from the places before are under way"
        copies.append(Copy())
        under_way.hold(copies[-1], batch_of(pixels))
        del pixels
    copies[0].over = True
    place, pixels = memory.take()
    assert place == 3, "nobody has looked yet"
    under_way.hold(Copy(), batch_of(pixels))
    del pixels
    assert memory.take()[0] == 0


def test_places_are_bounded_however_late_copies_end() -> None:
    memory, under_way, copies, places = SharedBatches((2, 3)), PendingCopies(), [], set()
    for _ in range(50):
        place, pixels = memory.take()
        places.add(place)
        copies.append(Copy())
        under_way.hold(copies[-1], batch_of(pixels))
        del pixels
    assert len(places) == MAX_PENDING + 1
    assert [copy.waited for copy in copies] == [True] * (50 - MAX_PENDING) + [False] * MAX_PENDING


@pytest.mark.parametrize("workers", [0, 2])
def test_on_the_cpu_batches_are_the_loaders_own(corpus: Corpus, workers: int) -> None:
    to_device = ToDevice(CPU)
    steps = to_device.ahead(load([corpus], workers=workers, micro_batch_size=4))
    assert {step: [rows(to_device(batch)) for batch in batches] for step, batches in steps} == by_step(
        load([corpus], micro_batch_size=4)
    )


class Runtime:
    """Stands for CUDA's runtime: which address is registered, and whether it still can be."""

    def __init__(self, error: int = 0) -> None:
        self.error, self.calls = error, 0
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.calls += 1
        if not self.error:
            assert address not in self.registered and flags == 0
            self.registered[address] = size
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        ctypes.string_at(address, self.registered.pop(address))  # it is still mapped: all of it can be read
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    made = Runtime()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    yield made


def test_each_place_is_pinned_once_and_released_with_the_last_batch(runtime: Runtime) -> None:
    memory = SharedBatches((2, 3))
    first, second = memory.take()[1], memory.take()[1]
    assert {first.data_ptr(), second.data_ptr()} == set(runtime.registered)
    for _ in range(3):  # places that are used again
        del second
        second = memory.take()[1]
    assert runtime.calls == 2
    del memory, second
    gc.collect()
    assert first.data_ptr() in runtime.registered, "a copy from it may be under way"
    del first
    assert not runtime.registered


def test_memory_that_cannot_be_pinned_is_said_once(runtime: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    runtime.error = 2
    memory = SharedBatches((2, 3))
    taken = [memory.take() for _ in range(3)]
    assert [place for place, _ in taken] == [0, 1, 2] and runtime.calls == 1
    assert capfd.readouterr().err.count("cannot be pinned (CUDA error 2)") == 1


def test_a_loaders_batches_are_pinned_where_they_are_used(corpus: Corpus, runtime: Runtime) -> None:
    steps = 0
    for _, batches in load([corpus], workers=2, micro_batch_size=4, stop_step=6):
        assert {batch.video.data_ptr() for batch in batches} <= set(runtime.registered)
        steps += 1
    del batches
    gc.collect()
    assert steps == 6 and runtime.calls <= 12 and not runtime.registered


@pytest.fixture
def device() -> torch.device:
    torch.cuda.init()
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_pinned_memory_are_the_same_bits(corpus: Corpus, device: torch.device, workers: int) -> None:
    """While the GPU is busy for longer than a step takes to load, so that copies are under way all the time."""
    expected = by_step(load([corpus], micro_batch_size=4, stop_step=6))
    to_device, found = ToDevice(device), {}
    for step, batches in to_device.ahead(load([corpus], micro_batch_size=4, stop_step=6, workers=workers)):
        assert all(batch.video.is_pinned() for batch in batches)
        torch.cuda._sleep(50_000_000)
        found[step] = [to_device(batch) for batch in batches]
    assert {step: [rows(batch.to("cpu")) for batch in batches] for step, batches in found.items()} == expected


@pytest.mark.gpu
@needs_gpu
def test_the_host_does_not_wait_for_a_copy(device: torch.device) -> None:
    memory, to_device = SharedBatches((8, 1, 4, 32, 32, 3)), ToDevice(device)
    warm = batch_of(memory.take()[1].flatten(0, 1).permute(0, 4, 1, 2, 3))
    for _ in range(3):  # until memory for it is there: to make some waits for the GPU
        to_device(warm)
        torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(500_000_000)
        moved = to_device(warm)
        assert not torch.cuda.current_stream().query(), "the GPU sleeps, and the host is here"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(moved.video.cpu(), warm.video)


@pytest.mark.gpu
@needs_gpu
def test_no_place_is_written_while_it_is_copied(device: torch.device) -> None:
    """A copy that waits behind a busy copy stream; what writes to free places meanwhile must not reach it."""
    memory, to_device = SharedBatches((1, 1, 1, 64, 64, 3)), ToDevice(device)
    moved = []
    assert to_device._stream is not None
    for value in range(40):
        pixels = memory.take()[1]
        pixels.fill_(value)
        with torch.cuda.stream(to_device._stream):
            torch.cuda._sleep(5_000_000)
        moved.append(to_device(batch_of(pixels.flatten(0, 1).permute(0, 4, 1, 2, 3))))
        del pixels
    assert [set(batch.video.flatten().tolist()) for batch in moved] == [{value} for value in range(40)]


@pytest.mark.gpu
@needs_gpu
def test_a_failed_registration_leaves_no_error_behind(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = torch.cuda.cudart()
    twice = SimpleNamespace(
        cudaHostRegister=lambda *place: [real.cudaHostRegister(*place) for _ in range(2)][1],  # error 712
        cudaHostUnregister=real.cudaHostUnregister,
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: twice)
    pixels = SharedBatches((1, 1, 1, 8, 8, 3)).take()[1]
    assert "cannot be pinned (CUDA error 712)" in capfd.readouterr().err
    assert torch.ones(3, device=device).sum().item() == 3
    real.cudaHostUnregister(pixels.data_ptr())
