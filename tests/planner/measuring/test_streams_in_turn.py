"""Momentum streams whose blocks take turns with other units: a plan is made for all of them as a whole."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.planner.fit import measured_step
from momentumnet.planner.measuring.step_loss import loss_of
from tests.contract.reference import assert_same, train_step
from tests.models import ResidualMLP

WIDTH = 16


class Towers(nn.Module):
    """Two streams side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.left = nn.ModuleList(ResidualMLP(WIDTH, 64) for _ in range(6))
        self.right = nn.ModuleList(ResidualMLP(WIDTH, 64) for _ in range(6))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.first(x), self.second(y)
        for left, right in zip(self.left, self.right, strict=True):
            x, y = left(x), right(y)
        return x * y


class Scaled(ResidualMLP):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x + self.inner(x * scale)


class Conditioned(nn.Module):
    """A module for each block makes its condition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Scaled(WIDTH, 64) for _ in range(6))
        self.scales = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 64), nn.SiLU(), nn.Linear(64, WIDTH)) for _ in range(6)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x)
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = block(x, scale(y))
        return x


@pytest.mark.parametrize("build", [Towers, Conditioned])
def test_within_any_budget(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, inputs = build().train(), (torch.randn(256, WIDTH), torch.randn(256, WIDTH))
    least = mn.plan(model, inputs, gamma=1 / 8, budget="least")
    expected = train_step(mn.convert(model, inputs, gamma=1 / 8, backward="stored"), inputs)
    low, high = least.measured_peak, least.stored_peak
    for budget in (low, (2 * low + high) // 3, (low + high) // 2, (low + 2 * high) // 3, high * 11 // 10):
        net = mn.convert(model, inputs, gamma=1 / 8, budget=budget)
        assert_same(train_step(net, inputs), expected)
        net.zero_grad(set_to_none=True)
        found = mn.measure_memory(lambda net=net: loss_of(net(*inputs)).backward()).peak_bytes
        assert found <= budget


@pytest.mark.parametrize(("build", "off"), [(Towers, 0.02), (Conditioned, 0.11)])
def test_peaks_are_predicted_by_themselves(build: Callable[[], nn.Module], off: float) -> None:
    torch.manual_seed(0)
    model, inputs = build().train(), (torch.randn(256, WIDTH), torch.randn(256, WIDTH))
    step = measured_step(model, inputs, gamma=Fraction(1, 8))
    for plan in (step.plan(None), step.plan(step.least[0] * 3 // 2), step.plan(1 << 40)):
        net = mn.convert(model, plan=plan)

        def train(net: nn.Module = net) -> None:
            output = net(*inputs)  # which a training loop holds
            loss_of(output).backward()

        train()
        net.zero_grad(set_to_none=True)
        report = mn.measure_memory(train)
        assert plan.peak == pytest.approx(report.peak_bytes, rel=off)
        assert plan.held == pytest.approx(report.saved_bytes, rel=0.02)
