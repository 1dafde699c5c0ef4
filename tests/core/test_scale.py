"""The scale of a stream: kept while values fit it, widened with a word in the log once they do not."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from momentumnet.arithmetic.exponent import choose_exponent
from momentumnet.arithmetic.fixed_point import INT32
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.arithmetic.state_bytes import resting_bytes
from momentumnet.core.exact_state import ExactState
from momentumnet.core.scale import NARROW_BITS, StreamScale, magnitude_bits

EIGHTH = Fraction(1, 8)


def test_headroom_is_used_before_the_scale_is_widened(caplog: pytest.LogCaptureFixture) -> None:
    scale = StreamScale("s", 1.5, 20)  # 29 bits for up to 2, and one of headroom
    with caplog.at_level("WARNING", logger="momentumnet"):
        assert scale.exponent_for(torch.tensor([-3.9, 0.1]), EIGHTH) == choose_exponent(1.5, INT32)
        assert scale.exponent_for(torch.tensor([0.5]), EIGHTH) == choose_exponent(1.5, INT32)
    assert not caplog.text


def test_start_past_the_headroom_widens_for_good_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    scale = StreamScale("s", 1.5, 20)
    with caplog.at_level("WARNING", logger="momentumnet"):
        assert scale.exponent_for(torch.tensor([4.0]), EIGHTH) == choose_exponent(16.0, INT32)
    assert "'s'" in caplog.text
    assert "1.5" in caplog.text
    assert scale.exponent_for(torch.tensor([2.1]), EIGHTH) == choose_exponent(16.0, INT32)


def test_first_pass_without_example_leaves_room_for_what_the_blocks_add() -> None:
    assert StreamScale("s", None, 20).exponent_for(torch.tensor([1.0]), EIGHTH) == choose_exponent(4.0, INT32)


@pytest.mark.parametrize("start", [torch.zeros(3), torch.zeros(0), torch.tensor([float("nan")])])
def test_start_without_magnitude_takes_the_streams_own(start: torch.Tensor) -> None:
    assert StreamScale("s", 5.0, 20).exponent_for(start, EIGHTH) == choose_exponent(5.0, INT32)


def test_short_streams_of_small_gamma_and_half_precision_are_narrow() -> None:
    assert magnitude_bits(torch.float32, 8, EIGHTH) == magnitude_bits(torch.float32, 1, Fraction(1, 2)) == NARROW_BITS
    assert magnitude_bits(torch.bfloat16, 1000, Fraction(9, 10)) == NARROW_BITS
    assert magnitude_bits(torch.float32, 9, EIGHTH) == magnitude_bits(torch.float32, 2, Fraction(9, 10)) == 29
    assert magnitude_bits(torch.float64, 1, EIGHTH) == 61
    scale, x = StreamScale("s", 1.5, 3), torch.tensor([1.4])
    assert scale.exponent_for(x, EIGHTH) == choose_exponent(1.5, INT32, NARROW_BITS) == 21


def test_narrow_state_rests_in_less_than_eight_bytes() -> None:
    torch.manual_seed(0)
    scale, x, gamma = StreamScale("s", 6.0, 5), torch.randn(1000), EIGHTH
    state = ExactState(x, None, gamma, scale.exponent_for(x, EIGHTH), "s", NARROW_BITS)
    undos = [state.step(Branch(torch.randn(1000)), 1 - gamma) for _ in range(5)]
    state.pack()
    assert all(undo.spilled is None for undo in undos)
    # x and v of 22 bits, their sign and one bit of headroom; the store below 8**5.
    assert state.packed_bytes <= resting_bytes(gamma, INT32, NARROW_BITS, 5) == (24 + 24 + 15) / 8
