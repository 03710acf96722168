"""The watch finds what it is for: each way to make the host wait, and devices that are mixed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from watch import Watch, empty, place

from tgm_scale.masking.diagnostics import MotionMonitor

HOST = torch.tensor([0, 1])

WAITS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "item": (lambda x: x.sum().item(), "a value read on the host"),
    "tolist": (lambda x: x.tolist(), "a tensor copied to the host"),
    "float": (lambda x: float(x.sum()), "a value read on the host"),
    "if": (lambda x: bool(x.sum() > 0), "a value read on the host"),
    "cpu": (lambda x: x.cpu(), "a tensor copied to the host"),
    "to the host": (lambda x: x.to("cpu", torch.float64), "a tensor copied to the host"),
    "copied into a host tensor": (lambda x: torch.empty(3).copy_(x), "a tensor copied to the host"),
    "to the device": (lambda x: HOST.to(x.device), "a blocking copy to the device"),
    "copied into a device tensor": (lambda x: x.copy_(torch.zeros(3)), "a blocking copy to the device"),
    "a list": (lambda x: torch.tensor([1, 2], device=x.device), "a tensor of Python values made on the device"),
    "new_tensor": (lambda x: x.new_tensor([1, 2]), "a tensor of Python values made on the device"),
    "a list as index": (lambda x: x[[0, 1]], "a list as index"),
    "a list to set by": (lambda x: x.__setitem__([0, 1], 0.0), "a list as index"),
    "a host tensor as index": (lambda x: x[HOST], "an index on the host"),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_noted(name: str) -> None:
    act, kind = WAITS[name]
    with Watch() as watch:
        act(empty((3,)))
    assert watch.waits == {f"{place()}: {kind}": 1}


FREE: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).relu().sum(),
    "a number of the host": lambda x: x * torch.tensor(2.0),
    "a non-blocking copy": lambda x: HOST.to(x.device, non_blocking=True),
    "a cast": lambda x: x.to(torch.bfloat16),
    "an index on the device": lambda x: x[empty((2,), torch.int64)],
    "a slice": lambda x: x[1:],
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "a constant": lambda x: torch.full((3,), 2.0, device=x.device),
    "an arange": lambda x: torch.arange(3, device=x.device),
}


@pytest.mark.parametrize("name", FREE)
def test_what_waits_for_nothing_is_not_noted(name: str) -> None:
    with Watch() as watch:
        FREE[name](empty((3,)))
    assert not watch.waits


REFUSED: dict[str, Callable[[Tensor], object]] = {
    "two devices": lambda x: x + torch.ones(3),
    "a device's tensor among host ones": lambda x: torch.cat([torch.ones(3), x]),
    "a boolean index": lambda x: x[x > 0],
    "set by a boolean index from a tensor": lambda x: x.__setitem__(x > 0, empty((2,))),
    "nonzero": lambda x: (x > 0).nonzero(),
    "where with one argument": lambda x: torch.where(x > 0),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "repeat_interleave by a tensor": lambda x: x.repeat_interleave(empty((3,), torch.int64)),
    "equal": lambda x: torch.equal(x, x + 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mixed_devices_and_shapes_that_depend_on_values_are_refused(name: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)), Watch():
        REFUSED[name](empty((3,)))


def test_a_wait_is_named_by_its_place_in_the_package() -> None:
    monitor = MotionMonitor()
    with Watch() as watch:
        monitor.observe(empty((2, 2, 4, 4)), empty((2,)))
        assert not watch.waits
        monitor.metrics()
    assert watch.waits == {"masking/diagnostics.py:_latest: a tensor copied to the host": 1}
