"""Parts of a network that are measured by themselves: what they overwrite, remember, or refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from tests.models import WIDTH
from tests.planner.measuring.streamless import Raw, Shifting, peak_of


class Overwrites(nn.Module):
    """Begins by overwriting what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.relu_(x) + 1.0)))


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Overwrites() for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x * 1.0)
        return x


def test_modules_that_overwrite_their_input_are_recomputed_within_their_parent() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16), Parent()), torch.randn(64, 16)
    found = mn.convert(model, x, budget="least")
    gradients = []
    for net in (model, found):
        net.zero_grad()
        net(x).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, *gradients))


class InTraining(Shifting):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x += self.shift
        return self.inner(x)


class Reentrant(Shifting):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x + self.shift, use_reentrant=True)


class OfLoss(torch.autograd.Function):
    """Wants the gradient of a loss, and not what stands in its place where a part is measured by itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if bool((gradient == 1).all()):
            raise TypeError("expected what a loss hands on")
        return gradient


class WantsLoss(Shifting):
    def forward(self, x: Tensor) -> Tensor:
        return OfLoss.apply(self.inner(x + self.shift))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (InTraining, "'?1'? .*it overwrites what it takes"),
        (Reentrant, "use_reentrant=True; take F"),
        (WantsLoss, r"it raised TypeError there \(expected what .*\); convert without a budget"),
    ],
)
def test_what_cannot_be_measured_by_itself_is_said(kind: type[nn.Module], message: str) -> None:
    model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), kind())])
    with pytest.raises(mn.ConversionError, match=message):
        mn.convert(model, torch.randn(64, WIDTH), budget="least")


class Remembering(nn.Module):
    """Goes on from what its last call has left, with its gradient, unless that was of another batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.GELU(), nn.Linear(8 * WIDTH, WIDTH))
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        left, self.state = self.state, y
        return y if left is None else y + 0.0 * left.mean()


class Forgetting(nn.Sequential):
    """Begins anew in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            layer.state = None
        return super().forward(x)


def test_what_a_measured_part_leaves_on_attributes_is_not_for_the_next_run() -> None:
    model, x = Forgetting(*[Remembering() for _ in range(6)]), torch.randn(512, WIDTH)
    found = mn.convert(model, x, budget="least")
    for net in (model, found):
        net.zero_grad()
        net(x).square().mean().backward()
    assert all(map(torch.equal, *([p.grad for p in net.parameters()] for net in (model, found))))


class OfSeveral(Shifting):
    """Overwrites one of the tensors in a list."""

    def forward(self, given: list[Tensor]) -> Tensor:  # type: ignore[override]
        given[1] += self.shift
        return self.inner(given[0] + given[1])


class Listing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OfSeveral() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer([x, 2 * x])
        return x


def test_tensors_in_lists_that_are_overwritten() -> None:
    model, x = Listing(), torch.randn(512, WIDTH)
    found = mn.convert(model, x, budget="least")
    for net in (model, found):
        net(x).square().mean().backward()
    assert all(map(torch.equal, *([p.grad for p in net.parameters()] for net in (model, found))))
    assert peak_of(lambda: found(x), found) < 0.6 * peak_of(lambda: model(x), model)


class OverwritingRaw(Raw):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


def test_a_module_without_children_that_overwrites_its_argument_is_stored() -> None:
    layers = [layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), OverwritingRaw())]
    model, x = nn.Sequential(*layers, *[Raw() for _ in range(4)]), torch.randn(512, WIDTH)
    plan = mn.plan(model, x, budget="least")
    found = mn.convert(model, plan=plan)
    recomputed = {name for names in mn.describe(found)["recomputed"] for name in names}
    assert recomputed
    assert recomputed <= {"8", "9", "10", "11"}
    for net in (model, found):
        net(x).square().mean().backward()
    assert all(map(torch.equal, *([p.grad for p in net.parameters()] for net in (model, found))))
