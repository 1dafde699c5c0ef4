"""The bytes of a state are those that its parts were made of."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from momentumnet.bench.kernel.state import measure_state

ELEMENTS = 1 << 14


# Beside the state the allocator sees a few rows of reports: 1 KiB, which is 1/16 byte for each element here.
@pytest.mark.parametrize(
    ("dtype", "in_motion"), [(torch.float32, 10), (torch.bfloat16, 8), (torch.float16, 8)], ids=str
)
def test_bytes_in_motion(dtype: torch.dtype, in_motion: int) -> None:
    row = measure_state(ELEMENTS, Fraction(9, 10), dtype, 4, torch.device("cpu"))
    assert in_motion <= row["bytes_in_motion"] <= in_motion + 1 / 8
    assert row["bytes_at_rest"] < row["bytes_in_motion"]
    assert row["bytes_put_aside"] == 0


def test_a_small_gamma_puts_aside_what_its_store_does_not_hold() -> None:
    """A step at gamma 1/8 divides by 8: 3 bits of each element have to go somewhere."""
    row = measure_state(ELEMENTS, Fraction(1, 8), torch.float32, 24, torch.device("cpu"))
    assert 24 * 3 / 8 - 4 <= row["bytes_put_aside"] <= 24 * 3 / 8
