"""The scale of a stream: kept while values fit it, widened once they do not."""

from __future__ import annotations

import copy
import itertools
import math
from fractions import Fraction

import pytest
import torch

from momentumnet.arithmetic.exponent import choose_exponent
from momentumnet.arithmetic.fixed_point import INT24, INT32, INT64
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.arithmetic.state_bytes import resting_bytes
from momentumnet.core.scaling.resolution import (
    HALF_BITS,
    JOINT_BITS,
    NARROW_BITS,
    NARROW_TYPICAL_BITS,
    TYPICAL_BITS,
    Resolution,
    resolution_for,
)
from momentumnet.core.scaling.scale import StreamScale
from momentumnet.core.scaling.spread import spread_of
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.range import Range
from momentumnet.core.state.watch import Seen

EIGHTH = Fraction(1, 8)


def test_headroom_is_used_before_the_scale_is_widened(caplog: pytest.LogCaptureFixture) -> None:
    scale = StreamScale("s", 1.5, 20)  # 29 bits for up to 2, and one of headroom
    with caplog.at_level("INFO", logger="momentumnet"):
        assert scale.exponent_for(torch.tensor([-3.9, 0.1]), EIGHTH) == choose_exponent(1.5, INT32)
        assert scale.exponent_for(torch.tensor([0.5]), EIGHTH) == choose_exponent(1.5, INT32)
    assert not caplog.text


def test_start_past_the_headroom_widens_for_good_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    scale = StreamScale("s", 1.5, 20)
    with caplog.at_level("INFO", logger="momentumnet"):
        assert scale.exponent_for(torch.tensor([4.0]), EIGHTH) == choose_exponent(16.0, INT32)
    assert "'s'" in caplog.text
    assert "1.5" in caplog.text
    assert scale.exponent_for(torch.tensor([2.1]), EIGHTH) == choose_exponent(16.0, INT32)


def test_widening_is_news_told_once_with_nothing_to_do(caplog: pytest.LogCaptureFixture) -> None:
    scale = StreamScale("s", 1.5, 20)
    with caplog.at_level("INFO", logger="momentumnet"):
        for size in (10.0, 100.0, 1000.0):
            for known in (copy.copy(scale), scale):  # what is learned in passing is forgotten, what was told is not
                known.exponent_for(torch.tensor([size]), EIGHTH)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "nothing to do" in record.getMessage()


def test_first_pass_without_example_leaves_room_for_what_the_blocks_add() -> None:
    assert StreamScale("s", None, 20).exponent_for(torch.tensor([1.0]), EIGHTH) == choose_exponent(4.0, INT32)


@pytest.mark.parametrize("start", [torch.zeros(3), torch.zeros(0), torch.tensor([float("nan")])])
def test_start_without_magnitude_takes_the_streams_own(start: torch.Tensor) -> None:
    assert StreamScale("s", 5.0, 20).exponent_for(start, EIGHTH) == choose_exponent(5.0, INT32)


def test_short_streams_of_small_gamma_and_half_precision_are_narrow() -> None:
    narrow, whole = Resolution(INT32, NARROW_BITS), Resolution(INT32, 29)
    assert resolution_for(torch.float32, 8, EIGHTH) == resolution_for(torch.float32, 1, Fraction(1, 2)) == narrow
    assert resolution_for(torch.bfloat16, 1000, EIGHTH, spread=8) == Resolution(INT24, HALF_BITS)
    assert resolution_for(torch.float16, 1000, EIGHTH, spread=8) == Resolution(INT24, 17)
    assert resolution_for(torch.bfloat16, 1000, Fraction(9, 10), spread=8) == Resolution(INT24, 17)
    assert resolution_for(torch.float32, 9, EIGHTH) == resolution_for(torch.float32, 2, Fraction(9, 10)) == whole
    assert resolution_for(torch.float64, 1, EIGHTH) == Resolution(INT64, 61)


@pytest.mark.parametrize("gamma", [Fraction(0), EIGHTH, Fraction(9, 10), Fraction(127, 128), Fraction(1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_words_of_24_bits_where_the_store_has_16(dtype: torch.dtype, gamma: Fraction) -> None:
    found = resolution_for(dtype, 10, gamma)
    assert found.word is (INT32 if gamma == Fraction(127, 128) or found.bits > JOINT_BITS else INT24)
    # At rest it makes no difference.
    if gamma:
        assert resting_bytes(gamma, found.word, found.bits, 5) == resting_bytes(gamma, INT32, found.bits, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_far_below_the_largest_get_more_bits(dtype: torch.dtype) -> None:
    """First the rest of the word, then a wider one: a typical value never has fewer bits than its type needs."""
    found = [resolution_for(dtype, 4, EIGHTH, spread=2.0**n) for n in range(24)]
    words = [resolution.word for resolution in found]
    assert [words[0], words[-1]] == [INT32 if dtype == torch.float32 else INT24, INT64]
    assert all(resolution.bits <= JOINT_BITS for resolution in found if resolution.word is INT24)
    assert found[0].bits == {torch.float32: NARROW_BITS}.get(dtype, HALF_BITS)
    for n, resolution in enumerate(found):
        is_narrow = resolution.bits == NARROW_BITS and dtype == torch.float32
        assert resolution.bits - n >= (NARROW_TYPICAL_BITS if is_narrow else TYPICAL_BITS[dtype])
    assert all(a.bits <= b.bits for a, b in itertools.pairwise(found))


def test_spread_is_of_the_median_that_is_not_zero() -> None:
    values = torch.cat([torch.zeros(1000), torch.full((99,), 0.5), torch.tensor([-2e4, math.inf, math.nan])])
    assert spread_of(values, 2e4) == pytest.approx(4e4)
    assert spread_of(torch.zeros(5), 0.0) == spread_of(torch.zeros(0), 0.0) == 1.0
    assert spread_of(torch.randn(3, 100_000).t(), 4.0) == pytest.approx(4 / 0.6745, rel=0.1)


@pytest.mark.parametrize("tiny", [1e-50, 5e-324])
def test_spread_over_values_that_float32_does_not_know_is_finite(tiny: float) -> None:
    """As a softmax of large values in float64 leaves them."""
    values = torch.tensor([1.0, tiny, tiny, tiny], dtype=torch.float64)
    assert spread_of(values, 1.0) == pytest.approx(min(1 / tiny, 2.0**100))


def test_the_first_pass_looks_for_the_spread() -> None:
    x = torch.ones(100)
    x[3] = 2e5
    assert StreamScale("s", None, 20).plan_for(x, EIGHTH).resolution.word is INT64
    assert StreamScale("s", None, 20).plan_for(torch.ones(100), EIGHTH).resolution.word is INT32


def test_short_streams_are_narrow_in_a_pass() -> None:
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


@pytest.mark.parametrize(
    ("start", "from_start", "is_told"),
    [(1.0, True, False), (0.25, True, False), (0.1, True, True), (0.1, False, False)],
)
def test_a_coarse_pass_is_told_only_where_its_start_has_shrunk(
    start: float, from_start: bool, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a stream that grew by 8 in the pass before, and does not now: typical values have 3 bits less, and more."""
    scale = StreamScale("s", 8.0, 4, start=1.0, spread=8.0)
    exponent = choose_exponent(8.0, INT24, HALF_BITS)
    with caplog.at_level("WARNING", logger="momentumnet"):
        for first, greatest, whole in ((1.0, 8.0, True), (start, start, from_start)):
            seen = [Seen(place, exponent, math.ldexp(value, exponent)) for place, value in ((-1, first), (0, greatest))]
            fitting = Range(INT24, exponent, HALF_BITS, "s")
            scale.learn(seen, fitting, gamma=EIGHTH, dtype=torch.bfloat16, from_start=whole)
    assert len(caplog.records) == is_told
