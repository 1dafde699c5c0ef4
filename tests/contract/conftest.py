"""Every contract test that takes ``case`` runs over all networks of `tests.models`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from momentumnet.core.state.exact_state import ExactState
from tests.contract.reference import COUPLED
from tests.models import CASES, Case


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=[{}, *COUPLED], ids=lambda options: str(options.get("coupling", "momentum")))
def coupled(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of `convert` for each coupling that it knows."""
    return request.param


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Compares each state that backward reconstructs with a copy taken in forward."""
    seen: dict[tuple[int, int], tuple[Any, ...]] = {}
    equal: list[bool] = []
    step, undo = ExactState.step, ExactState.undo

    def watched_step(state: ExactState, *args: Any) -> Any:
        seen[id(state), state.steps] = (state.x.clone(), state.v.clone(), state.s.clone(), state.exponent)
        return step(state, *args)

    def watched_undo(state: ExactState, *args: Any, **kwargs: Any) -> None:
        undo(state, *args, **kwargs)
        x, v, s, exponent = seen[id(state), state.steps]
        equal.append(
            torch.equal(state.x, x)
            and torch.equal(state.v, v)
            and torch.equal(state.s, s)
            and state.exponent == exponent
        )

    monkeypatch.setattr(ExactState, "step", watched_step)
    monkeypatch.setattr(ExactState, "undo", watched_undo)
    return equal
