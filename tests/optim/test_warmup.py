"""Learning rates against ones computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau, StepLR

from momentumnet.optim import constant, warmup


def sgd() -> Optimizer:
    """Two groups, with learning rates 1 and 0.1."""
    small = {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}
    return SGD([{"params": [nn.Parameter(torch.zeros(1))]}, small], lr=1.0)


def rates(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> list[float]:
    """The first group's rate in each step; the second's must be a tenth of it."""
    seen = []
    for _ in range(steps):
        large, small = (group["lr"] for group in optimizer.param_groups)
        assert small == pytest.approx(large / 10)
        seen.append(large)
        optimizer.step()
        scheduler.step()
    return seen


def test_warmup_rises_linearly_and_stays() -> None:
    optimizer = sgd()
    assert rates(optimizer, warmup(optimizer, 4), 7) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])


def test_warmup_from_a_chosen_start() -> None:
    optimizer = sgd()
    assert rates(optimizer, warmup(optimizer, 2, start=0.1), 4) == pytest.approx([0.1, 0.55, 1, 1])


def test_one_step() -> None:
    optimizer = sgd()
    assert rates(optimizer, warmup(optimizer, 1), 3) == pytest.approx([0.5, 1, 1])


def cosine(epochs: int) -> list[float]:
    return [(1 + math.cos(math.pi * step / epochs)) / 2 for step in range(epochs)]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (lambda optimizer, after: warmup(optimizer, 3, after=after), [0.25, 0.5, 0.75]),
        (lambda optimizer, after: constant(optimizer, 3, after=after), [1, 1, 1]),
        (lambda optimizer, after: constant(optimizer, 3, factor=0.2, after=after), [0.2, 0.2, 0.2]),
    ],
)
def test_one_more_epoch_before_the_schedule(
    first: Callable[[Optimizer, LRScheduler], LRScheduler], expected: list[float]
) -> None:
    optimizer = sgd()
    scheduler = first(optimizer, CosineAnnealingLR(optimizer, 5))
    assert rates(optimizer, scheduler, 8) == pytest.approx(expected + cosine(5))


def test_schedule_in_steps_of_its_own_counts_from_its_beginning() -> None:
    optimizer = sgd()
    scheduler = warmup(optimizer, 1, after=StepLR(optimizer, 2, gamma=0.5))
    assert rates(optimizer, scheduler, 6) == pytest.approx([0.5, 1, 1, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("interrupted_after", [2, 3, 5])
def test_resumed_by_state_dict(interrupted_after: int) -> None:
    def make() -> tuple[Optimizer, LRScheduler]:
        optimizer = sgd()
        return optimizer, warmup(optimizer, 3, after=CosineAnnealingLR(optimizer, 5))

    optimizer, scheduler = make()
    whole = rates(optimizer, scheduler, 8)
    optimizer, scheduler = make()
    rates(optimizer, scheduler, interrupted_after)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = make()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert rates(optimizer, scheduler, 8 - interrupted_after) == pytest.approx(whole[interrupted_after:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: warmup(o, 0), "steps must be a whole number of at least 1, got 0"),
        (lambda o: constant(o, 1.5), "steps must be a whole number of at least 1, got 1.5"),
        (lambda o: constant(o, True), "steps must be a whole number of at least 1, got True"),
        (lambda o: warmup(o, 2, start="0.1"), "start must be above 0 and at most 1, got '0.1'"),
        (lambda o: warmup(o, 2, start=0), "start must be above 0 and at most 1, got 0"),
        (lambda o: constant(o, 2, factor=2), "factor must be above 0 and at most 1, got 2"),
        (lambda o: warmup(o, 2, after=CosineAnnealingLR(sgd(), 2)), "of the same optimizer"),
        (lambda o: warmup(o, 2, after=stepped(o)), "newly made, but it has been stepped 1 times"),
        (lambda o: constant(o, 2, after=ReduceLROnPlateau(o)), "ReduceLROnPlateau"),
    ],
)
def test_unusable_arguments(call: Callable[[Optimizer], object], message: str) -> None:
    optimizer = sgd()
    with pytest.raises(ValueError, match=message):
        call(optimizer)


def stepped(optimizer: Optimizer) -> LRScheduler:
    scheduler = CosineAnnealingLR(optimizer, 2)
    optimizer.step()
    scheduler.step()
    return scheduler
