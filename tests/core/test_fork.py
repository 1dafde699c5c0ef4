"""A fork goes on from where a state is, and the state waits there, bit for bit."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.exponent import choose_exponent
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.state.coupling import FloatState, NonFiniteBranch
from momentumnet.core.state.exact_state import ExactState
from tests.arithmetic.strategies import dtypes, exact, gammas, layouts, shapes
from tests.core.states import Snapshot, random_tensor, step_of, undo_all


@given(st.data(), gammas, dtypes, shapes, layouts)
@exact(60)
def test_state_and_fork_go_their_own_ways(data, gamma, dtype, shape, layout) -> None:
    x = random_tensor(1, shape, 1.0, dtype, layout)
    state = ExactState(x, None, gamma, choose_exponent(4.0, fp.word_for(dtype)), "stream")
    twin = ExactState(x, None, gamma, choose_exponent(4.0, fp.word_for(dtype)), "stream")
    before, after = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 6))
    branches = [
        random_tensor(seed, shape, data.draw(st.sampled_from([1e-3, 1.0, 1e4])), dtype, layout)
        for seed in range(before + after)
    ]
    steps = [step_of(state, branch, 1 - gamma) for branch in branches[:before]]
    for branch in branches[:before]:
        twin.step(Branch(branch), 1 - gamma)
    waiting, fork = Snapshot.of(twin), state.fork()
    for branch in branches[before:]:
        fork.step(Branch(branch), 1 - gamma)
        twin.step(Branch(branch), 1 - gamma)
    assert Snapshot.of(twin).is_of(fork)
    assert torch.equal(fork.position(dtype), twin.position(dtype))
    assert waiting.is_of(state)
    undo_all(state, steps)


def test_a_state_that_waits_is_packed() -> None:
    state = ExactState(random_tensor(0, (64, 64), 1.0, torch.float32), None, Fraction(1, 8), 20, "stream")
    state.fork()
    assert state.packed_bytes is not None
    assert state.packed_bytes <= 8


def test_float_states_fork_too() -> None:
    state = FloatState(torch.ones(3), None, Fraction(1, 2), finite_only=True)
    state.step(Branch(torch.ones(3)), Fraction(1, 2))
    fork = state.fork()
    fork.step(Branch(torch.full((3,), torch.inf)), Fraction(1, 2))
    assert fork.position(torch.float32).isinf().all()
    assert torch.equal(state.position(torch.float32), torch.full((3,), 1.5))
    with pytest.raises(NonFiniteBranch):
        state.step(Branch(torch.full((3,), torch.inf)), Fraction(1, 2))
