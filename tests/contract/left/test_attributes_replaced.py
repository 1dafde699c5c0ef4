"""Attributes, layers and parameters that a call puts something else in the place of, for the next call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import momentumnet as mn
from tests.contract.left.experts import OPTIONS, WIDTH, Block, Expert, gradients_of


class State(NamedTuple):
    mean: Tensor
    calls: int


class Held:
    """An object of somebody's own."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean


class Kept(Block):
    """Leaves something of its values for the next call, which computes with it."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of, self.calls = of, 0
        self.state: Any = None
        self.function: Any = None
        self.count = torch.zeros(())
        self.add_module("low", Expert())

    def forward(self, x: Tensor) -> Tensor:
        mean, factor = x.detach().mean(0), 1.0
        if self.of == "made, then written to":
            if self.state is None:
                self.state = mean
            else:
                self.state.mul_(0.9).add_(mean, alpha=0.1)
        elif self.of == "from the third call on":
            self.calls += 1
            self.count += self.calls > 2
            factor = 1 / (1 + float(self.count))
        elif self.of == "past its counter":
            self.count.data += 1
            factor = 1 / float(self.count)
        elif self.of == "a tuple":
            mean, self.state = (mean if self.state is None else self.state[0] + mean), (mean, 3)
        elif self.of == "a number of NumPy":
            self.state = np.float64(1) if self.state is None else self.state + 1
            factor = 1 / float(self.state)
        elif self.of == "a named tuple":
            self.state, mean = State(mean, 3), mean if self.state is None else mean + self.state.mean
        elif self.of == "an object":
            self.state, mean = Held(mean), mean if self.state is None else mean + self.state.mean
        elif self.of == "a list":
            before, self.state = self.state or [], [*(self.state or [])[-2:], mean]
            mean = torch.stack([mean, *before]).sum(0)
        elif self.of == "a dict":
            self.state = {"mean": mean, "calls": 1 if self.state is None else self.state["calls"] + 1}
            factor = 1 / self.state["calls"]
        elif self.of == "a function":
            self.function = torch.sin if self.function is torch.cos else torch.cos
            mean = self.function(mean)
        elif self.of == "an object or none":
            self.function, factor = (object(), 1.0) if self.function is None else (None, 0.5)
        elif self.of == "an array of NumPy":
            self.state = np.ones(3) if self.state is None else self.state + 1
            factor = 1 / float(self.state.sum())
        elif self.of == "another name":
            had = hasattr(self, "first")
            factor = 0.5 if had else 1.0
            vars(self).pop("first" if had else "second", None)
            setattr(self, "second" if had else "first", None)
        elif self.of == "another layer":
            self.expert, self.low = self.low, self.expert
        return super().forward(x) * factor + mean

    def left(self) -> list[Tensor]:
        layers = [self.expert.enter.weight, self.low.enter.weight] if self.of == "another layer" else []
        state = [self.state.mean] if isinstance(self.state, Held) else pytree.tree_leaves(self.state)
        state = [value for value in state if value is not None]
        return [torch.as_tensor(value).detach() for value in (*state, self.count, *layers)]


KEPT = [
    "made, then written to", "from the third call on", "past its counter", "a tuple", "a number of NumPy",
    "another name", "another layer", "a named tuple", "an object", "a list", "a dict", "a function",
    "an object or none", "an array of NumPy",
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("of", KEPT)
def test_what_is_kept_for_the_next_call(of: str, options: dict[str, Any]) -> None:
    """Against the same network with stored activations, in gradients and in what is left."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*[Kept(of) for _ in range(3)]), torch.randn(8, WIDTH)
    found, stored = (mn.convert(model, x, **way) for way in (options, {"backward": "stored"}))
    for _ in range(4):
        torch.testing.assert_close(gradients_of(found, x), gradients_of(stored, x), rtol=1e-4, atol=1e-7)
        for block, other in zip(found, stored, strict=True):
            torch.testing.assert_close(block.left(), other.left())
            assert vars(block).keys() == vars(other).keys()


class Built(nn.Module):
    """Makes its layers in its first forward, as a flag of its own says."""

    def __init__(self) -> None:
        super().__init__()
        self.is_built, self.drop = False, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_built:
            self.enter, self.leave = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
            self.bias = nn.Parameter(torch.zeros(WIDTH))
            self.is_built = True
        output: Tensor = x + self.leave(self.drop(torch.tanh(self.enter(x)))) + self.bias
        return output


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layers_that_the_first_call_makes_are_those_that_are_trained(options: dict[str, Any]) -> None:
    x, trained = torch.randn(8, WIDTH), []
    for way in (options, {"backward": "stored"}):
        torch.manual_seed(0)
        net = mn.convert(nn.Sequential(*[Built() for _ in range(3)]), x, **way)
        torch.manual_seed(1)
        output = net(x)
        parameters = list(net.parameters())
        output.square().mean().backward()
        assert all(map(lambda left, right: left is right, parameters, net.parameters()))
        trained.append([p.grad for p in parameters])
    assert len(trained[0]) == 15
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-7)


class Averaged(Block):
    """Has a new parameter, without a gradient, for its old one after every call: a codebook that is an average."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x) + self.mean
        self.mean = nn.Parameter(0.9 * self.mean + 0.1 * x.detach().mean(0), requires_grad=False)
        return output


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_that_a_call_replaces_are_replaced_once(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*[Averaged() for _ in range(3)]), torch.randn(8, WIDTH)
    found, stored = (mn.convert(model, x, **way) for way in (options, {"backward": "stored"}))
    for _ in range(3):
        torch.testing.assert_close(gradients_of(found, x), gradients_of(stored, x), rtol=1e-4, atol=1e-7)
        for block, other in zip(found, stored, strict=True):
            torch.testing.assert_close(block.mean, other.mean)
