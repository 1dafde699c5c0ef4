"""The plain rule in floats, its adjoint and the flush: against recurrences and autograd in float64."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from momentumnet.arithmetic.adjoint import adjoint
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.state.coupling import FloatState, Undo, flush_factor
from tests.arithmetic.strategies import DTYPES, exact, gammas
from tests.core.states import is_same


def _branches(count: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-13 if dtype == torch.float64 else 1e-5


class TestFloatState:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("start", [False, True], ids=["zero velocity", "velocity given"])
    def test_is_the_rule(self, dtype: torch.dtype, start: bool) -> None:
        gamma, weight = Fraction(9, 10), Fraction(1, 10)
        x, v, *branches = _branches(22, dtype)
        state = FloatState(x, v if start else None, gamma)
        want_x, want_v = x.double(), v.double() * start
        for branch in branches:
            state.step(Branch(branch), weight)
            want_v = 0.9 * want_v + 0.1 * branch.double()
            want_x = want_x + want_v
            torch.testing.assert_close(state.position(torch.float64), want_x, rtol=0, atol=_tolerance(dtype))
            torch.testing.assert_close(state.velocity(torch.float64), want_v, rtol=0, atol=_tolerance(dtype))
        assert state.x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert state.position(dtype).dtype == state.velocity(dtype).dtype == dtype

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_undo_is_the_inverse_to_rounding(self, dtype: torch.dtype) -> None:
        x, *branches = _branches(13, dtype)
        state, passed = FloatState(x, None, Fraction(1, 2)), []
        for branch in branches:
            passed.append((state.position(torch.float64), state.velocity(torch.float64), state.fingerprint()))
            state.step(Branch(branch), Fraction(1, 2))
        tolerance = 2**13 * _tolerance(dtype) / 10
        for branch, (position, velocity, fingerprint) in zip(reversed(branches), reversed(passed), strict=True):
            torch.testing.assert_close(state.previous_position(Undo(), torch.float64), position, rtol=0, atol=tolerance)
            state.undo(Undo(), Branch(branch), Fraction(1, 2))
            torch.testing.assert_close(state.position(torch.float64), position, rtol=0, atol=tolerance)
            torch.testing.assert_close(state.velocity(torch.float64), velocity, rtol=0, atol=tolerance)
            assert is_same(state.fingerprint(), fingerprint)

    def test_an_inverse_past_use_does_not_match(self) -> None:
        x, *branches = _branches(11, torch.float32)
        state = FloatState(x, None, Fraction(1, 10))
        start = state.fingerprint()
        for branch in branches:
            state.step(Branch(branch), Fraction(9, 10))
        for branch in reversed(branches):
            state.undo(Undo(), Branch(branch), Fraction(9, 10))
        assert not is_same(state.fingerprint(), start)

    @pytest.mark.parametrize("shape", [(0,), (), (2, 0, 3)])
    def test_any_shape(self, shape: tuple[int, ...]) -> None:
        state, branch = FloatState(torch.ones(shape), None, Fraction(1, 2)), torch.ones(shape)
        start = state.fingerprint()
        state.undo(state.step(Branch(branch), Fraction(1, 2)), Branch(branch), Fraction(1, 2))
        assert torch.equal(state.position(torch.float32), torch.ones(shape))
        assert is_same(state.fingerprint(), start)

    def test_a_position_in_a_graph_shares_no_memory_with_the_state(self) -> None:
        state = FloatState(torch.ones(3), None, Fraction(1, 2))
        state.position(torch.float32).zero_()
        assert state.position(torch.float32).tolist() == [1.0] * 3

    def test_without_gradients_nothing_is_copied(self) -> None:
        with torch.no_grad():
            x = torch.ones(3)
            state = FloatState(x, None, Fraction(1, 2))
            assert state.position(torch.float32).data_ptr() == x.data_ptr()
            state.step(Branch(torch.ones(3)), Fraction(1, 2))
        assert x.tolist() == [1.0] * 3, "a step makes a new x"


@given(gammas, st.sampled_from([None, Fraction(1)]), st.integers(0, 1 << 20))
@exact(40)
def test_adjoint_is_the_transpose_of_a_step(gamma: Fraction, weight: Fraction | None, seed: int) -> None:
    weight, generator = 1 - gamma if weight is None else weight, torch.Generator().manual_seed(seed)
    f, x, v, grad_x, grad_v = torch.randn(5, 8, generator=generator, dtype=torch.float64).unbind()
    for leaf in (f, x, v):
        leaf.requires_grad_()
    next_v = v * float(gamma) + f * float(weight)
    next_x = x + next_v
    want_f, want_x, want_v = torch.autograd.grad((next_x, next_v), (f, x, v), (grad_x, grad_v))
    got_f, got_v, got_x = adjoint(grad_x, grad_v, float(gamma), float(weight))
    torch.testing.assert_close(got_f, want_f, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(got_v, want_v, rtol=1e-14, atol=1e-14)
    assert torch.equal(want_x, grad_x)
    assert got_x is grad_x, "x passes its gradient on unchanged"
    before = grad_v.clone()
    options = {"branch_is_output": False, "overwrite": True}
    again_f, again_v, again_x = adjoint(grad_x, before, float(gamma), float(weight), **options)
    assert torch.equal(again_f, got_f)
    assert torch.equal(again_v, got_v)
    assert torch.equal(again_x, grad_x - got_f), "but for what passes through y - x"
    assert again_v.data_ptr() == before.data_ptr()


@pytest.mark.parametrize("gamma", [Fraction(1, 128), Fraction(1, 8), Fraction(9, 10), Fraction(127, 128)])
def test_flush_is_what_endless_empty_blocks_add(gamma: Fraction) -> None:
    velocity = added = 1.0
    while velocity > 1e-20:
        velocity *= float(gamma)
        added += velocity
    assert flush_factor(gamma) == pytest.approx(added - 1, rel=1e-9)


def test_flush_needs_a_velocity_that_fades() -> None:
    with pytest.raises(ZeroDivisionError):
        flush_factor(Fraction(1))
