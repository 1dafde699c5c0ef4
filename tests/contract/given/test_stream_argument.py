"""A stream that its blocks take behind another tensor: the trace tells which argument it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.parents import Looped, converted
from tests.contract.reference import assert_same, relative_error, train_step
from tests.models import WIDTH, ResidualMLP

GAMMA = 0.25


class Beside(ResidualMLP):
    """Takes a tensor beside the stream, in either order."""

    def forward(self, beside: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = x + self.inner(x + beside)
        return y if mask is None else y * mask


Call = Callable[[nn.Module, Tensor, Tensor], Tensor]

CALLS: dict[str, Call] = {
    "keywords": lambda block, x, beside: block(beside=beside, x=x),
    "keyword behind a position": lambda block, x, beside: block(beside, x=x),
    "position behind a position": lambda block, x, beside: block(beside, x),
    "between two others": lambda block, x, beside: block(beside=beside, x=x, mask=torch.full((WIDTH,), 0.5)),
}
BESIDE: dict[str, Callable[[Tensor, nn.Parameter], Tensor]] = {
    "a parameter": lambda x, parameter: parameter,
    "a constant": lambda x, parameter: torch.ones(WIDTH, dtype=x.dtype),
    "a constant of the stream's shape": lambda x, parameter: torch.ones_like(x),
    "computed, of the stream's shape": lambda x, parameter: parameter.sin().expand_as(x) * 2,
    "computed from the stream's start": lambda x, parameter: (x * parameter).mean(0),
}


class Parent(nn.Module):
    """Hands its blocks the stream in the way of ``call``, beside what ``beside`` makes."""

    def __init__(self, call: str, beside: str, *, projects: bool) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH) if projects else nn.Identity()
        self.blocks = nn.ModuleList(Beside() for _ in range(4))
        self.parameter = nn.Parameter(torch.linspace(-1, 1, WIDTH))
        self.call, self.beside = CALLS[call], BESIDE[beside]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        beside = self.beside(x, self.parameter)
        for block in self.blocks:
            x = self.call(block, x, beside)
        return x


def parent(call: str = "keywords", beside: str = "a parameter", *, projects: bool = False) -> Parent:
    torch.manual_seed(0)
    return Parent(call, beside, projects=projects)


def by_the_rule(net: Parent, x: Tensor) -> Tensor:
    """The paper's rule and the flush in float64, on the blocks as they are."""
    x = net.first(x)
    beside = net.beside(x, net.parameter)
    v = torch.zeros_like(x)
    for block in net.blocks:
        v = GAMMA * v + (1 - GAMMA) * (net.call(block, x, beside) - x)
        x = x + v
    return x + GAMMA / (1 - GAMMA) * v


@pytest.mark.parametrize("projects", [False, True], ids=["on the model's input", "on what has a gradient"])
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("call", CALLS)
def test_stream_behind_another_tensor_is_the_stream(call: str, beside: str, projects: bool) -> None:
    x = torch.randn(5, WIDTH)
    model = parent(call, beside, projects=projects)
    stored, net = (mn.convert(model, x, gamma=GAMMA, backward=backward) for backward in ("stored", "reversible"))
    assert [len(stream) for stream in mn.find_streams(model, x)] == [4]
    got = train_step(net, (x,))
    assert_same(got, train_step(stored, (x,)))
    reference = model.double()
    reference.forward = lambda x: by_the_rule(reference, x)
    assert relative_error(got, train_step(reference, (x.double(),))) < 1e-5


def test_blocks_called_in_another_way_than_in_the_example() -> None:
    """A keyword is known by its position, too, and the other way round."""
    x = torch.randn(5, WIDTH)
    for traced, called in [("keywords", "position behind a position"), ("position behind a position", "keywords")]:
        nets = [mn.convert(parent(traced), x, backward=backward) for backward in ("stored", "reversible")]
        expected = train_step(nets[0], (x,))
        for net in nets:
            net.zero_grad()
            net.call = CALLS[called]
        assert_same(train_step(nets[1], (x,)), expected)


@pytest.mark.parametrize("beside", ["a constant", "a constant of the stream's shape"])
def test_streams_named_by_hand_do_not_know_and_are_refused(beside: str) -> None:
    with pytest.raises(mn.ConversionError, match=r"convert with example inputs|of its input's shape"):
        mn.convert(parent("keywords", beside), streams=["blocks"])(torch.randn(5, WIDTH))


@pytest.mark.parametrize("again", ["copied", "described", "planned"])
def test_it_is_known_to_whoever_makes_the_network_again(again: str) -> None:
    x, model = torch.randn(5, WIDTH), parent("keywords", "a constant of the stream's shape")
    net = mn.convert(model, x, backward="reversible")
    made: nn.Module
    if again == "copied":
        made = mn.convert(mn.revert(net), x, backward="reversible")
    elif again == "described":
        made = mn.convert(model, like=json.loads(json.dumps(mn.describe(net))))
    else:
        made = mn.convert(model, plan=mn.plan(model, x, gamma=1 / 8, budget=2**30))
    assert relative_error(train_step(made, (x,)), train_step(net, (x,))) < 1e-5  # scales that were learnt differ


@pytest.mark.parametrize("arguments", [["x"], "xxxx", [0.5] * 4, [True] * 4])
def test_description_of_other_arguments_is_refused(arguments: Any) -> None:
    model = parent()
    description = mn.describe(mn.convert(model, torch.randn(5, WIDTH)))
    description["streams"][0]["arguments"] = arguments
    with pytest.raises(mn.ConversionError, match="by position or keyword"):
        mn.convert(model, like=description)


class Output(nn.Module):
    """Adds to what it is given second; the branch was computed outside."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        return x + self.dense(hidden)


class Outside(nn.Module):
    """Computes a part of each block's branch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.outputs = nn.ModuleList(Output() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.inner[0].weight[0]
        for inner, output in zip(self.inner, self.outputs, strict=True):
            x = output(inner(x).tanh(), x)
        return x


def test_module_that_adds_what_was_computed_outside_is_no_block() -> None:
    """As the output layers of BERT, which take what they add to behind the branch: the layer is the block."""
    with pytest.raises(mn.ConversionError, match=r"outputs\.0.*no skip connection inside"):
        mn.convert(Outside(), torch.randn(5, WIDTH))


def test_mask_beside_the_stream_is_given_no_gradient() -> None:
    """Attention with a mask that needs one takes another kernel, which keeps more."""
    seen: list[bool] = []

    class Masked(ResidualMLP):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            seen.append(mask.requires_grad)
            return x + self.inner(x) * mask

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Masked() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(x.shape[0], 1)
            for block in self.blocks:
                x = block(x, mask)
            return x

    mn.plan(Encoder(), torch.randn(5, WIDTH))
    assert seen == [False] * 3


class Positioned(ResidualMLP):
    """Takes the stream as its second argument."""

    def forward(self, position: Tensor, x: Tensor) -> Tensor:
        return x + self.inner(x + position)


@pytest.mark.parametrize("gradients", [True, False])
def test_stream_that_begins_with_the_wrong_argument_is_refused(gradients: bool) -> None:
    def run(parent: Looped, x: Tensor) -> Tensor:
        position = torch.ones_like(x)
        for block in parent.blocks:
            x = block(position, x)
        return x

    net = converted(Looped(run, Positioned))
    with torch.set_grad_enabled(gradients), pytest.raises(mn.ConversionError, match="first argument"):
        net(torch.randn(5, WIDTH))
