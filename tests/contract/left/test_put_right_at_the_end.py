"""What a module does behind the last value that it saves: its recompute is not left before."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.ending_early import WIDTH, Head, built, products, rows, step, stream


class Rounding(Head):
    """Multiplies by rounded weights, and puts its own back when it has done so."""

    def forward(self, x: Tensor) -> Tensor:
        own = self.last.weight.data
        self.last.weight.data = (8 * own).round() / 8
        y = super().forward(x)
        self.last.weight.data = own
        return y


class Scaling(Head):
    """The same in place."""

    def forward(self, x: Tensor) -> Tensor:
        self.last.weight.data.mul_(2)
        y = super().forward(x)
        self.last.weight.data.div_(2)
        return y


class Wide(Head):
    """Computes in float64 unless it is told otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        y = super().forward(x)
        torch.set_default_dtype(torch.float32)
        return y


class RoundingLater(Head):
    """Rounds from its third call on (training for few bits that begins with a delay)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        own = self.last.weight.data
        if self.calls > 2:
            self.last.weight.data = (8 * own).round() / 8
        y = super().forward(x)
        self.last.weight.data = own
        return y


class Freezing(Head):
    """A layer takes no gradient while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.last.requires_grad_(False)
        y = super().forward(x)
        self.last.requires_grad_(True)
        return y


class Hooking(Head):
    """Hooks a layer while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        handle = self.last.register_forward_hook(lambda module, args, output: 1.5 * output)
        y = super().forward(x)
        handle.remove()
        return y


class Exchanging(Head):
    """Has another layer in the place of its own while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.other = copy.deepcopy(self.last)

    def forward(self, x: Tensor) -> Tensor:
        own, self.last = self.last, self.other
        y = super().forward(x)
        self.last = own
        return y


class Branches(Head):
    """A number that Python draws is in one branch, of which the other ones know nothing."""

    steady = True

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) if self.steady else random.random() * super().forward(x)
        for layer in self.layers:
            y = y + torch.tanh(layer(x))
        return y


RIGHT_AT_THE_END = [Rounding, Scaling, Wide, RoundingLater, Freezing, Hooking, Exchanging]


@pytest.mark.parametrize("kind", RIGHT_AT_THE_END)
@pytest.mark.parametrize("place", ["module", "block"])
def test_what_a_module_puts_right_at_its_end_is_put_right(kind: type[nn.Module], place: str) -> None:
    net = built(kind) if place == "module" else stream(kind)
    expected = built(kind).module if place == "module" else stream(kind, backward="stored")
    for _ in range(4):
        found = {name.removeprefix("module."): gradient for name, gradient in step(net).items()}
        assert all(torch.equal(found[name], gradient) for name, gradient in step(expected).items())
    for parameter, other in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert parameter.requires_grad == other.requires_grad
    assert not any(module._forward_hooks for module in net.modules() if isinstance(module, nn.Linear))
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("place", ["module", "block"])
def test_a_branch_that_differs_is_seen(place: str) -> None:
    net = built(Branches) if place == "module" else stream(Branches)
    step(net)
    (net.module if place == "module" else net[1].branch).steady = False
    with pytest.raises(mn.ReconstructionError, match="did not compute the same"):
        step(net)


class Path(nn.Module):
    """In one chain, or with one layer beside the others by a number that Python draws: as many saved tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.in_a_chain = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)), True

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        beside = torch.tanh(first(x) if self.in_a_chain else random.random() * first(x))
        x = beside if self.in_a_chain else x
        for layer in others:
            x = torch.tanh(layer(x))
        return x if self.in_a_chain else x + beside


@pytest.mark.parametrize("place", ["module", "block"])
def test_another_path_that_saves_as_much_is_looked_at_by_itself(place: str) -> None:
    net = built(Path) if place == "module" else stream(Path)
    for _ in range(2):
        step(net)
    (net.module if place == "module" else net[1].branch).in_a_chain = False
    with pytest.raises(mn.ReconstructionError, match="did not compute the same"):
        step(net)


def test_a_forward_of_the_modules_own_runs_to_its_end() -> None:
    net = built()
    plain, ended = net.module.forward, []

    def forward(x: Tensor) -> Tensor:
        y = plain(x)
        ended.append(1)
        return y

    net.module.forward = forward
    assert products(net) == 2 + 2
    assert len(ended) == 2 * 2


def moved_away(layer: nn.Linear, way: str) -> None:
    """Its weight, of which the gradient of what came before is made, is another one."""
    if way == "data":
        layer.weight.data = 2 * layer.weight.data
    else:
        layer.weight = nn.Parameter(2 * layer.weight.detach())


@pytest.mark.parametrize("way", ["data", "another parameter"])
@pytest.mark.parametrize("in_stream", [False, True])
def test_a_parameter_that_was_replaced_between_forward_and_backward_is_seen(way: str, in_stream: bool) -> None:
    """No output is compared, and what the forward was given is not kept: the last product's weight would be taken."""
    net = stream() if in_stream else built()
    layer = net[1].branch.last if in_stream else net.module.last
    for _ in range(2):
        step(net)
    loss = net(rows()).square().mean()
    moved_away(layer, way)
    with pytest.raises(mn.ReconstructionError, match=r"'(branch\.)?last\.weight' was replaced between forward and"):
        loss.backward()
    step(net)  # goes on with the new one
