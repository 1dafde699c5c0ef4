"""The exact state: its inverse bit for bit, and its accuracy against rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.exponent import choose_exponent
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.state.exact_state import ExactState
from tests.arithmetic.strategies import dtypes, exact, gammas, layouts, shapes, words
from tests.core.states import assert_comes_back, is_same, random_tensor, step_of, undo_all


class TestExactInverse:
    @given(st.data(), gammas, dtypes, shapes, layouts)
    @exact(150)
    def test_any_stream_comes_back_bit_for_bit(self, data, gamma, dtype, shape, layout) -> None:
        seed, start_scale = data.draw(st.integers(0, 1 << 20)), data.draw(st.sampled_from([1e-6, 1.0, 1e3]))
        x = random_tensor(seed, shape, start_scale, dtype, layout)
        v = data.draw(st.sampled_from([None, random_tensor(seed + 1, shape, 3 * start_scale, torch.float32)]))
        state = ExactState(x, v, gamma, choose_exponent(4 * start_scale, fp.word_for(dtype)), "stream")
        assert_comes_back(data, state, gamma, seed, shape, dtypes, most=40)

    @pytest.mark.parametrize(
        ("gamma", "dtype"),
        [
            (Fraction(1, 100), torch.float32),
            (Fraction(1, 2), torch.float64),
            (Fraction(9, 10), torch.float32),
            (Fraction(127, 128), torch.bfloat16),
            (Fraction(97, 101), torch.float16),
            (Fraction(1), torch.float32),
        ],
    )
    def test_a_thousand_layers(self, gamma: Fraction, dtype: torch.dtype) -> None:
        state = ExactState(
            random_tensor(0, (31,), 1.0, dtype), None, gamma, choose_exponent(1.0, fp.word_for(dtype)), "deep"
        )
        branches = [random_tensor(seed, (31,), 1.0, dtype) for seed in range(1, 6)]
        weight = max(1 - gamma, Fraction(1, 10))
        # The branch follows the state, as in a network: a stale or wrong bit would spread.
        steps = [step_of(state, branches[layer % 5] * state.position(dtype).sin(), weight) for layer in range(1000)]
        undo_all(state, steps)

    def test_the_spilled_bytes_are_all_that_a_step_keeps(self) -> None:
        state = ExactState(random_tensor(0, (64,), 1.0, torch.float32), None, Fraction(9, 10), 24, "stream")
        branches = [Branch(random_tensor(layer, (64,), 1.0, torch.float32)) for layer in range(400)]
        undos = [state.step(branch, Fraction(1, 10)) for branch in branches]
        assert all(undo.low_bits is None for undo in undos)
        spilled = [undo.spilled for undo in undos if undo.spilled is not None]
        assert {byte.dtype for byte in spilled} == {torch.uint8}
        bits = 8 * sum(byte.numel() for byte in spilled) / (64 * 400)
        assert bits <= 1.25 * math.log2(10 / 9) + 0.03

    def test_a_branch_that_changed_is_told_by_the_fingerprint(self) -> None:
        state = ExactState(random_tensor(0, (50,), 1.0, torch.float32), None, Fraction(1, 8), 26, "stream")
        step = step_of(state, random_tensor(1, (50,), 1.0, torch.float32), Fraction(7, 8))
        wrong = step.branch.clone()
        wrong[17] += 1e-6
        state.undo(step.undo, Branch(wrong), step.weight)
        assert not is_same(state.fingerprint(), step.fingerprint)

    def test_the_tensors_given_are_left_alone(self) -> None:
        x, v, branch = (random_tensor(seed, (4, 3), 1.0, torch.float32) for seed in range(3))
        copies = x.clone(), v.clone(), branch.clone()
        state = ExactState(x, v, Fraction(1), 20, "stream")
        position = state.position(torch.float32)
        state.undo(state.step(Branch(branch), Fraction(1)), Branch(branch), Fraction(1))
        position.zero_()
        assert all(map(torch.equal, (x, v, branch), copies))
        assert torch.equal(state.position(torch.float64), (x.double() * 2**20).round() / 2**20)


class TestAccuracy:
    @given(gammas, words, st.integers(0, 1 << 20), st.integers(1, 40))
    @exact(60)
    def test_follows_the_rule_in_rational_numbers(self, gamma, word: fp.Word, seed: int, layers: int) -> None:
        dtype, size, exponent = word.compute_dtype, 4, 20
        x, v = (random_tensor(seed + i, (size,), 1.0, dtype) for i in range(2))
        state, weight = ExactState(x, v, gamma, exponent, "stream"), 1 - gamma
        velocity = [Fraction(round(Fraction(value) * 2**exponent)) for value in v.tolist()]
        assert state.x.tolist() == [round(Fraction(value) * 2**exponent) for value in x.tolist()]
        slack = Fraction(0)
        for layer in range(layers):
            branch = random_tensor(seed + 2 + layer, (size,), 1.0, dtype)
            before = state.x.tolist()
            state.step(Branch(branch), weight)
            digits = fp.store_schedule(gamma, word)[layer]
            slack = gamma * slack + Fraction(digits.n, 2 * digits.next_bound)
            slack += gamma * Fraction(512, digits.previous_bound) if digits.spills else 0
            velocity = [gamma * a + b for a, b in zip(velocity, _pushes(branch, weight, exponent), strict=True)]
            carried = [
                a + Fraction(b, digits.next_bound) for a, b in zip(state.v.tolist(), state.s.tolist(), strict=True)
            ]
            assert all(abs(a - b) <= slack for a, b in zip(carried, velocity, strict=True))
            moved = [after - start for after, start in zip(state.x.tolist(), before, strict=True)]
            assert moved == [math.floor(value + Fraction(1, 2)) for value in carried]

    def test_noise_is_that_of_rounding_x_alone(self) -> None:
        gamma, exponent, generator = Fraction(9, 10), 20, torch.Generator().manual_seed(0)
        state = ExactState(torch.randn(4096, generator=generator), None, gamma, exponent, "stream")
        x, v, measured = state.x.double(), torch.zeros(4096, dtype=torch.float64), {}
        for layer in range(1, 1001):
            branch = torch.randn(4096, generator=generator)
            state.step(Branch(branch), 1 - gamma)
            v = v * 0.9 + torch.tensor(_pushes(branch, 1 - gamma, exponent), dtype=torch.float64)
            x = x + v
            measured[layer] = (state.x - x).square().mean().sqrt().item()
        assert state.exponent == exponent
        for layers, ulps in ((10, 0.9), (100, 2.9), (1000, 9.2)):
            assert measured[layers] <= 1.5 * ulps

    @pytest.mark.parametrize("gamma", [Fraction(1, 8), Fraction(9, 10), Fraction(127, 128), Fraction(1)])
    def test_a_coarser_scale_rounds_without_bias(self, gamma: Fraction) -> None:
        state, scale = ExactState(torch.zeros(20000), None, gamma, 26, "stream"), 1.0
        x, v, widened, layers = torch.zeros(20000, dtype=torch.float64), torch.zeros(20000, dtype=torch.float64), 0, 60
        for layer in range(layers):
            branch, weight = random_tensor(layer, (20000,), scale, torch.float32), max(1 - gamma, Fraction(1, 16))
            widened += state.step(Branch(branch), weight).widened_bits > 0
            pushes = torch.tensor(_pushes(branch, weight, state.exponent), dtype=torch.float64)
            v = v * float(gamma) + torch.ldexp(pushes, torch.tensor(-state.exponent))
            x, scale = x + v, scale * 1.25
        bound = fp.store_schedule(gamma, fp.INT32)[layers - 1].next_bound
        unit = 2.0**-state.exponent
        error_v = state.velocity(torch.float64) / unit + state.s.double() / bound - v / unit
        error_x = state.x.double() - x / unit
        assert widened >= 4
        assert abs(error_v.mean()) < 0.05
        assert abs(error_x.mean()) < 0.3
        assert error_x.abs().max() < 30


def _pushes(branch: Tensor, weight: Fraction, exponent: int) -> list[int]:
    """What a branch adds to v, by NumPy: the product in the branch's own float type, to the nearest integer."""
    values = branch.numpy()
    return np.rint(values * values.dtype.type(math.ldexp(float(weight), exponent))).astype(np.int64).tolist()
