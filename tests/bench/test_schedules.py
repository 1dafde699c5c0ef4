"""The learning rate of each step against the formula, from the first step and from the middle of a course."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import SGD

from momentumnet.bench.trainings.recipe import warm_cosine, warm_then_constant

STEPS = 12


def rates(schedule: object, warm: int, start: int) -> list[list[float]]:
    """Of two groups of parameters, in each step from ``start`` on."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.4, 0.04)]
    optimizer = SGD(groups, lr=1.0)
    scheduler = schedule(optimizer, STEPS, warm_steps=warm, start_step=start)  # type: ignore[operator]
    seen = []
    for _ in range(start, STEPS):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


def rising(step: int, warm: int) -> float:
    return min(1.0, (step + 1) / (warm + 1))


@pytest.mark.parametrize("warm", [0, 1, 4])
@pytest.mark.parametrize("start", [0, 2, 7])
def test_rate_rises_linearly_and_falls_as_a_cosine(warm: int, start: int) -> None:
    def factor(step: int) -> float:
        if step < warm:
            return rising(step, warm)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (STEPS - warm)))

    expected = [[lr * factor(step) for lr in (0.4, 0.04)] for step in range(start, STEPS)]
    assert rates(warm_cosine, warm, start) == [pytest.approx(pair, rel=1e-9) for pair in expected]


@pytest.mark.parametrize("start", [0, 2, 7])
def test_rate_that_stays(start: int) -> None:
    expected = [[lr * rising(step, 4) for lr in (0.4, 0.04)] for step in range(start, STEPS)]
    assert rates(warm_then_constant, 4, start) == [pytest.approx(pair, rel=1e-9) for pair in expected]
