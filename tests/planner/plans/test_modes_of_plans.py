"""A network that is planned in eval mode, as `from_pretrained` leaves it, and trained in training mode."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, Chain
from tests.planner.wide import Wide, rows

TOLD = "was planned in eval mode and is in training mode now"


class Dropping(Wide):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.inner(x)) * self.drop(torch.tanh(x))


def dropping() -> Chain:
    torch.manual_seed(0)
    return Chain([Dropping() for _ in range(6)])


def step(net: nn.Module) -> None:
    net(rows()).square().mean().backward()


def taken(net: nn.Module) -> int:
    net.zero_grad(set_to_none=True)
    return mn.measure_memory(lambda: step(net)).peak_bytes


@pytest.fixture(scope="module")
def budget() -> int:
    """What a step in eval mode takes that keeps all."""
    return mn.plan(dropping().eval(), rows(), budget=1 << 30, gamma=0).stored_peak


def test_training_is_told_of_once(budget: int, caplog: pytest.LogCaptureFixture) -> None:
    net = mn.convert(dropping().eval(), rows(), gamma=0, budget=budget)
    step(net)
    with torch.no_grad():
        net.train()(rows())
    assert not caplog.text
    assert taken(net) > budget
    step(net.eval())
    step(net.train())
    assert caplog.text.count(TOLD) == 1
    assert f"more than the {budget / 1024:.0f} KiB planned. Call train() before it is planned" in caplog.text


def test_planned_in_training_mode_it_may_be_either(budget: int, caplog: pytest.LogCaptureFixture) -> None:
    net = mn.convert(dropping(), rows(), gamma=0, budget=budget)
    assert taken(net) <= budget
    assert taken(net.eval()) <= budget
    assert not caplog.text


def test_a_plan_of_a_version_that_did_not_say_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    plan = replace(mn.plan(dropping(), rows(), budget="least"), training=None)
    net = mn.convert(dropping(), plan=plan)
    for training in (True, True, False, True):
        step(net.train(training))
    assert not caplog.text


@pytest.mark.parametrize("gamma", [0, 1 / 8])
def test_with_replan_it_is_planned_again_for_training(
    gamma: float, budget: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "momentumnet")
    net = mn.convert(dropping().eval(), rows(), gamma=gamma, budget=budget, replan="auto")
    for training in (False, True, False, True):
        step(net.train(training))
    assert caplog.text.count("planning again") == 1
    assert f"{64 * WIDTH} elements come in in training mode, {64 * WIDTH} were planned for in eval mode" in caplog.text
    assert taken(net) <= budget
    assert TOLD not in caplog.text


def test_a_plan_and_the_largest_batch_tell_of_it(caplog: pytest.LogCaptureFixture) -> None:
    said = "Measured in eval mode; in training mode"
    assert said in str(mn.plan(dropping().eval(), rows(), budget="least"))
    assert said not in str(mn.plan(dropping(), rows(), budget="least"))
    mn.largest_batch(dropping(), rows, 1 << 18, gamma=0)
    assert not caplog.text
    mn.largest_batch(dropping().eval(), rows, 1 << 18, gamma=0)
    assert caplog.text.count("Chain is in eval mode, and so are the steps that are measured") == 1
