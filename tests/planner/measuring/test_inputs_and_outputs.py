"""Steps whose inputs take gradients, whose outputs are of a class of their own, and models that cannot be copied."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import ResidualMLP

WIDTH = 64


def squared(output: Tensor) -> Tensor:
    return output.square().mean()


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(ResidualMLP(WIDTH, 4 * WIDTH) for _ in range(5)))


def frozen() -> nn.Module:
    return blocks().requires_grad_(False)


def frozen_but_for_its_head() -> nn.Module:
    return nn.Sequential(*frozen(), nn.Linear(WIDTH, 3))


@pytest.mark.parametrize("is_leaf", [True, False])
@pytest.mark.parametrize("build", [frozen, frozen_but_for_its_head, blocks])
def test_gradients_that_go_on_through_the_inputs(build: Callable[[], nn.Module], is_leaf: bool) -> None:
    """As those of a generator go through its critic, or of an attack through a network of which nothing is trained."""
    model, before = build(), torch.randn(WIDTH, WIDTH).requires_grad_()

    def given() -> Tensor:
        return before if is_leaf else before.tanh()

    def step(net: nn.Module) -> int:
        def run() -> None:
            output = net(x)
            squared(output).backward()

        x = given()
        run()
        x = given()
        net.zero_grad(set_to_none=True)
        before.grad = None
        return mn.measure_memory(run).peak_bytes

    # Behind `tanh` the gradient goes on, which takes one tensor more.
    x, more = given(), 0 if is_leaf else before.nbytes
    least = mn.plan(model, x, budget="least", gamma=0, loss=squared)
    assert build is blocks or least.peak < 0.8 * least.stored_peak
    for plan in (least, mn.plan(model, x, budget=1 << 30, gamma=0, loss=squared)):
        assert plan.peak == pytest.approx(plan.measured_peak, rel=0.1)
        assert 0.9 * plan.peak <= step(mn.convert(model, plan=plan)) <= 1.1 * plan.peak + more
    assert x.requires_grad
    assert before.grad is not None
    before.grad = None
    squared(mn.convert(model, plan=least)(before)).backward()
    found, before.grad = before.grad, None
    squared(model(before)).backward()
    assert found is not None
    assert torch.equal(found, before.grad)


@dataclass
class Scores:
    """What PyTorch's pytrees know nothing of."""

    classes: Tensor
    mean: Tensor


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = blocks(), nn.Linear(WIDTH, 4000)

    def forward(self, x: Tensor) -> Scores:
        x = self.body(x)
        return Scores(self.head(x), x.mean())


def entropy(found: Scores) -> Tensor:
    return nn.functional.cross_entropy(found.classes, torch.zeros(len(found.classes), dtype=torch.long)) + found.mean


def test_an_output_of_a_class_of_its_own() -> None:
    model, x = Scored(), torch.randn(WIDTH, WIDTH)
    plan = mn.plan(model, x, budget="least", gamma=0, loss=entropy)
    net = mn.convert(model, plan=plan)

    def step() -> None:
        output = net(x)
        entropy(output).backward()

    step()
    net.zero_grad(set_to_none=True)
    assert plan.peak == pytest.approx(mn.measure_memory(step).peak_bytes, rel=0.01)


@dataclass
class OfSamples:
    loss: Tensor


class LossesOfSamples(nn.Module):
    """Gives each sample's loss, as audio codecs of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = blocks()

    def forward(self, x: Tensor) -> OfSamples:
        return OfSamples(self.blocks(x).square().mean(1))


def test_a_loss_of_each_sample_is_planned_as_their_sum() -> None:
    model, x = LossesOfSamples(), torch.randn(WIDTH, WIDTH)
    model(x).loss.sum().backward()
    planned = mn.convert(model, x, gamma=0, budget="least")
    peak = mn.measure_memory(lambda: planned(x).loss.sum().backward()).peak_bytes
    assert peak <= 1.01 * mn.plan(model, x, gamma=0, budget="least").peak
    pairs = zip(planned.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(ours.grad, theirs.grad) for ours, theirs in pairs)


class TwoHeads(nn.Module):
    """The second head is for another task than the one that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first = blocks(), nn.Linear(WIDTH, 4)
        self.second = nn.Sequential(nn.Linear(WIDTH, 2000), nn.Tanh(), nn.Linear(2000, 200))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.first(x), self.second(x)


def of_the_first(output: tuple[Tensor, Tensor]) -> Tensor:
    return squared(output[0])


def test_an_output_that_the_loss_does_not_use_leaves_no_gradients() -> None:
    model, x = TwoHeads(), torch.randn(WIDTH, WIDTH)
    plan = mn.plan(model, x, budget="least", gamma=0, loss=of_the_first)
    assert plan.peak == pytest.approx(plan.measured_peak, rel=0.1)
    stored = mn.plan(model, x, budget=plan.stored_peak * 11 // 10, gamma=0, loss=of_the_first)
    assert {unit.way for unit in stored.units} == {"stored"}
    assert stored.peak == pytest.approx(stored.measured_peak, rel=0.1)
    assert stored.peak < mn.plan(model, x, budget=1 << 30, gamma=0).peak


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.lock = blocks(), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            output: Tensor = self.body(x)
        return output


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = blocks()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        return self.last


@pytest.mark.parametrize("build", [Locked, Remembering])
def test_a_model_that_cannot_be_copied_is_planned_with_a_margin(build: Callable[[], nn.Module]) -> None:
    model, x = build(), torch.randn(WIDTH, WIDTH)
    model(x)  # what it remembers has a graph, which cannot be copied either
    budget = mn.plan(blocks(), x, budget="least", gamma=0).peak * 5 // 4
    plan = mn.plan(model, x, budget=budget, gamma=0)
    assert plan.measured_peak is None
    assert plan.peak <= 0.95 * budget
    net = mn.convert(model, x, budget=budget, gamma=0, inplace=True)
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
