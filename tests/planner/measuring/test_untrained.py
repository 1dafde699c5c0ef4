"""Budgets of networks whose first part is not trained, beside what a step of them takes."""

from __future__ import annotations

import pytest
from torch import nn

import momentumnet as mn
from tests.planner.wide import chain, rows


def frozen(count: int) -> nn.Module:
    net = chain()
    for module in (net.stem, *list(net.blocks)[:count]):
        module.requires_grad_(False)
    return net


def peak_of(net: nn.Module) -> int:
    x = rows()

    def step() -> None:
        net.zero_grad()
        net(x).sum().backward()

    step()
    return mn.measure_memory(step).peak_bytes


def test_a_head_alone_is_trained_as_it_is() -> None:
    """There is nothing to recompute, and no reason for another function."""
    net = frozen(6)
    plan = mn.plan(net, rows(), budget="least")
    assert (plan.gamma, {unit.way for unit in plan.units}) == (0, {"stored"})
    assert plan.peak == plan.stored_peak == pytest.approx(peak_of(net), rel=0.1)


def test_blocks_that_are_not_trained_take_nothing() -> None:
    net = frozen(3)
    plan = mn.plan(net, rows(), budget="1GiB")
    assert plan.stored_peak == pytest.approx(peak_of(net), rel=0.1)
    assert [unit.way for unit in mn.plan(net, rows(), budget="least").units][:3] == ["stored"] * 3
