"""Couplings of two steps: their integers come back bit for bit, and carry the rule without bias."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.exponent import choose_exponent
from momentumnet.arithmetic.fixed_point import INT24, INT32, INT64, Word
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.rules.additive import Additive
from momentumnet.core.rules.bdia import Bdia
from momentumnet.core.rules.dr2net import Dr2Net
from momentumnet.core.rules.two_step import TwoStep
from momentumnet.core.state.exact_state import ExactState
from tests.arithmetic.strategies import exact, layouts, shapes
from tests.core.states import assert_comes_back, random_tensor

RULES = [
    Additive(),
    Bdia(),
    Dr2Net(),
    Dr2Net(alpha=0, beta=1),
    Dr2Net(alpha=0.9, beta=0.1),
    Dr2Net(alpha=0.3, beta=0.7),
    Dr2Net(alpha=Fraction(127, 128), beta=Fraction(99, 100)),
]


def state_of(rule: TwoStep, x: torch.Tensor, word: Word, bits: int = 14) -> ExactState:
    exponent = choose_exponent(4.0, word, bits)
    return rule.integers(x, None, exponent, "stream", bits, word=word, careful=True)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__} {rule.gamma}")
@given(st.data(), shapes, layouts, st.sampled_from([INT24, INT32, INT64]))
@exact(20)
def test_any_stream_comes_back_bit_for_bit(rule: TwoStep, data, shape, layout, word: Word) -> None:
    """Branches of all magnitudes, a scale made coarser on the way, packed in between or not."""
    if word is INT24 and not fp.has_short_store(rule.gamma):
        word = INT32
    seed = data.draw(st.integers(0, 1 << 20))
    dtypes = st.just(torch.float64) if word is INT64 else st.sampled_from([torch.float32, torch.bfloat16])
    state = state_of(rule, random_tensor(seed, shape, 1.0, data.draw(dtypes), layout), word)
    # The weight behind the first step is 1 less this.
    less = Fraction(0) if not isinstance(rule, Bdia) else data.draw(st.sampled_from([Fraction(1, 2), -Fraction(1, 2)]))
    assert_comes_back(data, state, less, seed, shape, dtypes, most=30)


@pytest.mark.parametrize("rule", RULES[:-1], ids=lambda rule: f"{type(rule).__name__} {rule.gamma}")
def test_rounding_has_no_bias(rule: TwoStep) -> None:
    """Of many elements, the mean distance from the rule in float64 is far below the unit after 40 steps."""
    torch.manual_seed(0)
    branches = torch.randn(40, 20_000, dtype=torch.float64) / 40
    weights = [float(rule.draw_weight(first=step == 0)) for step in range(40)]
    # Such signs as keep what is computed near the size of what it began with.
    x, v, state = torch.zeros_like(branches[0]), torch.zeros_like(branches[0]), None
    state = state_of(rule, x.float(), INT32, bits=18)
    for branch, weight in zip(branches, weights, strict=True):
        a, b = rule.coefficients(weight).floats
        x, v = a * x + b * v + weight * branch, x
        state.step(Branch(branch.float()), Fraction(weight))
    units = (state.position(torch.float64) - x) * 2.0**state.exponent
    assert units.abs().mean() < 8
    assert abs(units.mean()) < 0.4


@pytest.mark.parametrize("word", [INT24, INT32, INT64])
@pytest.mark.parametrize(
    ("rule", "weight"), [(Bdia(), Fraction(1, 2)), (Dr2Net(alpha=1, beta=1), Fraction(1))], ids=str
)
@pytest.mark.parametrize("share", [0.5, 0.7, 0.999])
def test_sums_that_wrap_are_reported(rule: TwoStep, weight: Fraction, word: Word, share: float) -> None:
    """Of two values and a branch that fit alone, as large as they may be and of signs that add up."""
    x = torch.full((3,), share * word.limit, dtype=word.compute_dtype)
    v = -x if isinstance(rule, Bdia) else x
    state = rule.integers(x, v, 0, "stream", 14, word=word, careful=False)
    state.step(Branch(x / float(weight)), weight)
    assert state.unfit(int(state.report[0]))


@given(st.integers(-(2**30), 2**30), st.integers(0, 2), st.integers(1, 128))
@exact(200)
def test_scaled_rounds_to_the_nearest(value: int, more: int, d: int) -> None:
    factor = Fraction(max(1, d - more), d)
    found = int(fp.scaled(torch.tensor([value], dtype=torch.int32), factor))
    assert abs(found - value * factor) <= Fraction(1, 2)


def test_halves_are_rounded_either_way() -> None:
    values = torch.arange(-100, 100, dtype=torch.int32)
    for factor in (Fraction(1, 2), Fraction(3, 2)):
        assert (fp.scaled(values, factor) - values * float(factor)).mean() == 0
