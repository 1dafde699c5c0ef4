"""Exact states under test: random tensors, full copies of a state, steps that know what was there before."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st
from torch import Tensor

from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.checks.audit import Fingerprint
from momentumnet.core.state.coupling import NonFiniteBranch, Undo
from momentumnet.core.state.exact_state import ExactState
from momentumnet.errors import StateRangeError
from tests.arithmetic.strategies import laid_out, layouts


def random_tensor(
    seed: int, shape: tuple[int, ...], scale: float, dtype: torch.dtype, layout: str = "contiguous"
) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return laid_out(values.to(dtype), layout)


@dataclass
class Snapshot:
    """Everything that a state is, copied."""

    x: Tensor
    v: Tensor
    s: Tensor
    exponent: int
    steps: int

    @classmethod
    def of(cls, state: ExactState) -> Snapshot:
        return cls(state.x.clone(), state.v.clone(), state.s.clone(), state.exponent, state.steps)

    def is_of(self, state: ExactState) -> bool:
        same = all(map(torch.equal, (self.x, self.v, self.s), (state.x, state.v, state.s)))
        return same and (self.exponent, self.steps) == (state.exponent, state.steps)


def is_same(first: Fingerprint, second: Fingerprint) -> bool:
    """Whether both are of one state."""
    return first.exponent == second.exponent and not first.differs(second)


@dataclass
class Stepped:
    """One step that was made, with what was there before."""

    before: Snapshot
    position: Tensor
    fingerprint: Fingerprint
    undo: Undo
    branch: Tensor
    weight: Fraction


def step_of(state: ExactState, branch: Tensor, weight: Fraction) -> Stepped:
    before = Snapshot.of(state), state.position(torch.float64), state.fingerprint()
    return Stepped(*before, state.step(Branch(branch), weight), branch, weight)


def undo_all(state: ExactState, steps: list[Stepped], *, ahead: bool = False) -> None:
    """Take every step back; ``ahead`` as backward does it, which looks at the state only now and then."""
    for index, step in reversed(list(enumerate(steps))):
        if not ahead:
            after = Snapshot.of(state)
        assert torch.equal(state.previous_position(step.undo, torch.float64), step.position)
        if not ahead:
            assert after.is_of(state), "asking for the previous position moves nothing"
        state.undo(step.undo, Branch(step.branch), step.weight, ahead=ahead and index > 0)
        assert is_same(state.fingerprint(), step.fingerprint)
        if not ahead or index % 3 == 0:
            assert step.before.is_of(state)
            assert torch.equal(state.position(torch.float64), step.position)


def assert_comes_back(
    data: st.DataObject,
    state: ExactState,
    gamma: Fraction,
    seed: int,
    shape: tuple[int, ...],
    dtypes: st.SearchStrategy[torch.dtype],
    *,
    most: int,
) -> None:
    """So many steps at most, with branches of all magnitudes, packed behind them or not, are undone bit for bit."""
    steps: list[Stepped] = []
    for layer in range(data.draw(st.integers(1, most))):
        scale = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 1.0, 30.0, 1e4, 1e8, 1e30]))
        branch = random_tensor(seed + layer + 2, shape, scale, data.draw(dtypes), data.draw(layouts))
        before = Snapshot.of(state)
        try:
            steps.append(step_of(state, branch, Fraction(1) if layer == 0 else 1 - gamma))
        except (NonFiniteBranch, StateRangeError):
            assert before.is_of(state), "a refused step leaves the state as it was"
    if data.draw(st.booleans()):
        state.pack()
    undo_all(state, steps, ahead=data.draw(st.booleans()))
    assert state.steps == 0
