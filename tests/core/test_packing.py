"""Integers in fewer bytes: every value comes back, in the bytes that its range needs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from momentumnet.core.packing import pack
from tests.core.strategies import exact


@given(st.data(), st.integers(0, 31), st.booleans())
@exact(200)
def test_every_value_of_a_range_comes_back(data, bits: int, signed: bool) -> None:
    low, high = (-(1 << bits) if signed else 0), (1 << bits) - 1
    values = data.draw(st.lists(st.one_of(st.integers(low, high), st.sampled_from([low, high])), max_size=9))
    value = torch.tensor([low, *values, high], dtype=torch.int32)
    packed = pack(value.clone(), low, high)
    assert torch.equal(packed.unpacked(), value)
    assert packed.unpacked().dtype == torch.int32
    needed = -(-(bits + signed) // 8)
    assert packed.bytes_per_element == max(needed, 1)


@pytest.mark.parametrize(
    ("low", "high", "size"),
    [(-128, 127, 1), (0, 255, 1), (-129, 0, 2), (-(1 << 23), 5, 3), (0, 1 << 23, 3), (0, 1 << 24, 4), (0, 65535, 2)],
)
def test_bytes_at_the_edges(low: int, high: int, size: int) -> None:
    packed = pack(torch.tensor([low, high], dtype=torch.int32), low, high)
    assert packed.bytes_per_element == size
    assert packed.unpacked().tolist() == [low, high]


def test_longer_words_stay_as_they_are() -> None:
    value = torch.tensor([1, -2])
    assert pack(value, -2, 1).unpacked() is value


@pytest.mark.parametrize("bits", [16, 24])
def test_all_values_at_once_come_back(bits: int) -> None:
    """Long enough for the vectorised casts, which must wrap around and not saturate."""
    half = 1 << (bits - 1)
    for low in (-half, 0):
        value = torch.arange(low, low + 2 * half, dtype=torch.int32)
        packed = pack(value, low, low + 2 * half - 1)
        assert packed.bytes_per_element == bits // 8
        assert torch.equal(packed.unpacked(), value)
