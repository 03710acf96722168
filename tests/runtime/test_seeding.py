"""Keyed randomness: host code and tensors draw the same numbers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tgm_scale.runtime import seeding


@given(st.integers(0, 2**63 - 1), st.text(max_size=5), st.integers(1, 40))
def test_the_host_draws_what_the_device_draws(seed: int, purpose: str, count: int) -> None:
    assert seeding.draw(seed, purpose, count) == seeding.uniform(torch.tensor([seed]), count, purpose)[0].tolist()


@given(st.integers(0, 2**63 - 1), st.integers(0, 3000))
def test_a_permutation_is_the_order_of_a_tensors_bits(seed: int, count: int) -> None:
    bits_N = seeding.bits(torch.tensor([seed]), count, "permutation")[0]
    assert seeding.permutation(seed, count).tolist() == bits_N.argsort(stable=True).tolist()
