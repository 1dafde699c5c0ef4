"""The exact state at its limits: the choice of the scale, values that outgrow it, values that no integer carries."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.exponent import HEADROOM_BITS, choose_exponent
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.state.coupling import NonFiniteBranch
from momentumnet.core.state.exact_state import ExactState
from momentumnet.errors import StateRangeError
from tests.arithmetic.strategies import DTYPES, dtypes, exact, words
from tests.core.states import Snapshot, random_tensor, step_of, undo_all


class TestRange:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_values_that_grow_a_million_times_are_carried_and_undone(self, dtype: torch.dtype) -> None:
        gamma = Fraction(9, 10)
        state = ExactState(
            random_tensor(0, (40,), 0.005, dtype), None, gamma, choose_exponent(0.02, fp.word_for(dtype)), "growing"
        )
        first, capacities, steps = state.range.capacity, [state.range.capacity], []
        x, v = state.position(torch.float64), torch.zeros(40, dtype=torch.float64)
        for layer in range(30):
            branch = random_tensor(layer, (40,), 0.005 * 10 ** (6 * layer / 29), dtype)
            steps.append(step_of(state, branch, 1 - gamma))
            capacities.append(state.range.capacity)
            v = v * 0.9 + branch.double() * 0.1
            x = x + v
        assert capacities == sorted(capacities)
        widened = [step.undo.widened_bits for step in steps]
        if fp.word_for(dtype) == fp.INT32:
            assert sum(bits > 0 for bits in widened) >= 3
            assert state.range.capacity * 2**HEADROOM_BITS > x.abs().max() > first * 1000
        assert state.range.capacity == first * 2 ** sum(widened)
        assert (state.position(torch.float64) - x).abs().max() <= 1e-6 * x.abs().max()
        assert (state.velocity(torch.float64) - v).abs().max() <= 1e-6 * x.abs().max()
        undo_all(state, steps)
        assert state.range.capacity == first

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_a_jump_past_the_whole_word_is_undone(self, dtype: torch.dtype) -> None:
        word = fp.word_for(dtype)
        state = ExactState(
            random_tensor(0, (9,), 1e-30, dtype), None, Fraction(1, 2), choose_exponent(1e-30, word), "tiny"
        )
        steps = [
            step_of(state, random_tensor(layer, (9,), scale, dtype), Fraction(1, 2))
            for layer, scale in enumerate((1e-30, 1e3))
        ]
        assert steps[1].undo.widened_bits > word.bits
        assert (state.position(torch.float64) - steps[1].branch.double() / 2).abs().max() <= 2.0**-state.exponent
        undo_all(state, steps)

    @pytest.mark.parametrize(
        ("dtype", "branch", "magnitude"),
        [
            (torch.float32, 3e9, r"1\.5e\+09"),
            (torch.float32, -3e38, r"1\.5e\+38"),
            (torch.float64, 1.7e308, r"8\.5e\+307"),
            (torch.bfloat16, -4.0e9, r"1\.996e\+09"),
        ],
    )
    def test_what_no_scale_can_carry_is_refused_by_name(self, dtype, branch: float, magnitude: str) -> None:
        state = ExactState(
            random_tensor(0, (5,), 1.0, dtype), None, Fraction(1, 2), choose_exponent(1.0, fp.word_for(dtype)), "layer3"
        )
        steps = [step_of(state, random_tensor(1, (5,), 1.0, dtype), Fraction(1, 2))]
        before, huge = Snapshot.of(state), torch.zeros(5, dtype=dtype)
        huge[3] = branch
        with pytest.raises(StateRangeError, match=rf"'layer3': the largest magnitude, {magnitude}, does not fit"):
            state.step(Branch(huge), Fraction(1, 2))
        assert before.is_of(state)
        undo_all(state, steps)

    def test_a_sum_that_no_scale_can_carry_is_refused_by_its_own_magnitude(self) -> None:
        """x and the branch fit, x + v does not."""
        start = torch.full((3,), 1e9)
        state = ExactState(start, None, Fraction(1, 2), choose_exponent(1e9, fp.INT32), "layer4")
        with pytest.raises(StateRangeError, match=r"'layer4': the largest magnitude, 1\.[45]\d*e\+09, does not fit"):
            state.step(Branch(torch.full((3,), 9e8)), Fraction(1, 2))
        assert torch.equal(state.position(torch.float32), start)

    def test_the_coarsest_scale_is_used_to_its_limit(self) -> None:
        state = ExactState(torch.ones(3), None, Fraction(1, 2), 20, "stream")
        step = step_of(state, torch.tensor([1.0, -1.9e9, 2.0]), Fraction(1, 2))
        assert state.exponent == fp.INT32.min_exponent == 0
        assert state.x[1] == 1 - 950_000_000
        undo_all(state, [step])

    @pytest.mark.parametrize("start", [[5e9, 1.0], [1.0, -2e30]])
    def test_a_start_that_no_scale_can_carry_is_refused(self, start: list[float]) -> None:
        with pytest.raises(StateRangeError, match="stream 'first'"):
            ExactState(torch.tensor(start), None, Fraction(1, 2), 20, "first")
        with pytest.raises(StateRangeError, match="stream 'first'"):
            ExactState(torch.zeros(2), torch.tensor(start), Fraction(1, 2), 20, "first")

    @given(dtypes, st.sampled_from([1e-3, 1.0, 1e4]), st.booleans())
    @exact(30)
    def test_a_start_past_the_scale_lowers_it(self, dtype, scale: float, in_velocity: bool) -> None:
        large, small = random_tensor(0, (20,), scale, dtype), torch.zeros(20, dtype=dtype)
        x, v = (small, large) if in_velocity else (large, None)
        state = ExactState(x, v, Fraction(1, 2), fp.word_for(dtype).bits + 20, "stream")
        got = state.velocity(torch.float64) if in_velocity else state.position(torch.float64)
        assert (got - large.double()).abs().max() <= 2.0**-state.exponent <= 1e-6 * scale
        assert state.range.capacity > large.abs().max()

    @given(st.floats(1e-300, 1e300), words)
    @exact(200)
    def test_choose_exponent_leaves_the_headroom(self, magnitude: float, word: fp.Word) -> None:
        exponent = choose_exponent(magnitude, word)
        assert word.min_exponent <= exponent <= word.max_exponent
        integer, room = Fraction(magnitude) * Fraction(2) ** exponent, word.limit >> HEADROOM_BITS
        assert integer < room or exponent == word.min_exponent
        assert integer >= room // 2 or exponent == word.max_exponent

    @pytest.mark.parametrize("word", [fp.INT32, fp.INT64], ids=["int32", "int64"])
    def test_choose_exponent_of_capacity_is_stable(self, word: fp.Word) -> None:
        assert choose_exponent(0.0, word) == choose_exponent(1.0, word)
        state = ExactState(
            torch.zeros(1, dtype=word.compute_dtype), None, Fraction(1, 2), choose_exponent(3.0, word), "s"
        )
        assert state.range.capacity == 4.0
        assert choose_exponent(state.range.capacity / 2, word) == state.exponent

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_the_smallest_values_are_carried(self, dtype: torch.dtype) -> None:
        smallest = torch.finfo(dtype).tiny
        x = torch.tensor([smallest, -3 * smallest, 0.0], dtype=dtype)
        state = ExactState(x, None, Fraction(1, 2), choose_exponent(3 * smallest, fp.word_for(dtype)), "stream")
        assert torch.equal(state.position(dtype), x)


class TestNonFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_branch_is_refused_and_the_state_untouched(self, dtype: torch.dtype, value: float) -> None:
        state = ExactState(random_tensor(0, (3, 4), 1.0, dtype), None, Fraction(9, 10), 20, "stream")
        steps = [step_of(state, random_tensor(layer, (3, 4), 1.0, dtype), Fraction(1, 10)) for layer in range(1, 70)]
        before, bad = Snapshot.of(state), random_tensor(99, (3, 4), 1e3, dtype)
        bad[2, 1] = value
        bad[0, 0] = 6e4  # large as well: refused before any scale is changed for it
        with pytest.raises(NonFiniteBranch):
            state.step(Branch(bad), Fraction(1, 10))
        assert before.is_of(state)
        undo_all(state, steps)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_start_is_refused(self, value: float) -> None:
        bad = torch.tensor([0.0, value, 1.0])
        with pytest.raises(NonFiniteBranch):
            ExactState(bad, None, Fraction(1, 2), 20, "stream")
        with pytest.raises(NonFiniteBranch):
            ExactState(torch.zeros(3), bad, Fraction(1, 2), 20, "stream")
