"""Which tensors are carried beside a stream's first, and why others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.streams import discover
from tests.contract.double_streams import Double, Net, Pair, assert_same_gradients, both, gradients, positional


class NoSkip(Double):
    """Text is made anew by each block."""

    def forward(self, image: Tensor, text: Tensor) -> Any:
        return image + self.attended(image, text)[0], self.mlp[1](text)


class Overwriting(Double):
    def forward(self, image: Tensor, text: Tensor) -> Any:
        attended = self.attended(image, text)
        return image + attended[0], text.add_(attended[1])


class OtherType(Double):
    """Text is of float64."""

    def forward(self, image: Tensor, text: Tensor) -> Any:
        attended = self.attended(image, text.to(image.dtype))
        return image + attended[0], text + attended[1]


def widened(block: Any, image: Tensor, text: Tensor) -> Pair:
    return positional(block, image, text.double())


SINGLE = {
    "no skip": (Net(block=NoSkip), "block 'blocks.0' has no skip connection for it"),
    "another type": (Net(block=OtherType, call=widened), "it is of torch.float64, the stream of torch.float32"),
    "changed between": (
        Net(between=lambda image, text: (image, 1.5 * text)),
        "block 'blocks.1' does not take the very tensor that block 'blocks.0' returned",
    ),
    "overwritten": (Net(block=Overwriting), "block 'blocks.0' overwrites it in place"),
}


@pytest.mark.parametrize("case", SINGLE)
def test_the_first_alone_is_carried(case: str) -> None:
    net, reason = SINGLE[case]
    found = discover(net, both())
    (stream,) = found.streams
    assert (len(stream), stream.companions, stream.shapes) == (4, (), (both()[0].shape,))
    (told,) = [rejection.reason for rejection in found.rejections if rejection.blocks == stream.blocks]
    assert reason in told
    assert told in str(mn.plan(net, both()))


@pytest.mark.parametrize("case", ["no skip", "another type", "changed between"])
def test_gradients_where_the_first_alone_is_carried(case: str) -> None:
    net, _ = SINGLE[case]
    expected = gradients(mn.convert(net, both(), backward="stored"))
    assert_same_gradients(gradients(mn.convert(net, both())), expected)


def test_where_the_first_is_replaced_between_blocks_streams_end() -> None:
    """As where a ControlNet adds to the image in the middle."""

    class Controlled(Net):
        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            for place, block in enumerate(self.blocks):
                image, text = positional(block, image, text)
                image = image + 0.1 if place == 2 else image
            return self.head(torch.cat([image, text], 1))

    net = Controlled(depth=6)
    assert [len(stream.companions) for stream in mn.find_streams(net, both())] == [1, 1]
    assert_same_gradients(gradients(mn.convert(net, both())), gradients(mn.convert(net, both(), backward="stored")))


def test_where_only_the_last_blocks_hand_it_on_the_first_alone_is_carried() -> None:
    """As in LXMERT, whose layers of language come before those of both."""

    class Later(Net):
        def __init__(self) -> None:
            super().__init__(depth=3)
            self.before = nn.ModuleList(Alone() for _ in range(2))

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            for block in self.before:
                image = block(image)
            text = self.stems[1](text)
            for block in self.blocks:
                image, text = positional(block, image, text)
            return self.head(torch.cat([image, text], 1))

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x).tanh()

    (stream,) = mn.find_streams(Later(), both())
    assert (len(stream), stream.companions) == (5, ())
    assert "the blocks before 'blocks.0' do not hand it on" in str(mn.plan(Later(), both()))
    found = [gradients(mn.convert(Later(), both(), backward=backward)) for backward in ("stored", "auto")]
    assert_same_gradients(*found)


def test_plan_and_notes_tell_what_is_carried() -> None:
    plan = mn.plan(Net(), both())
    assert "blocks: carries 2 tensors as one state, 2x24x16 and 2x9x16" in str(plan)
    (row,) = plan.rows
    assert (row.shape, row.beside) == ((2, 24, 16), ((2, 9, 16),))
    assert row.checkpointed == 4 * (24 + 9) * 2 * 16 * 4


def test_an_argument_without_gradient_is_no_reason() -> None:
    """Inputs go straight into the blocks, by keyword and in any order."""

    class Straight(Net):
        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            image = self.stems[0](image)
            for block in self.blocks:
                image, text = positional(block, image, text)
            return self.head(torch.cat([image, text], 1))

    (stream,) = mn.find_streams(Straight(), both())
    assert len(stream.companions) == 1


class Triple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        joint = (a.mean(0) + b.mean(0) + c.mean(0)).tanh()
        return tuple(z + layer(z * joint) for z, layer in zip((a, b, c), self.layers, strict=True))


class Triples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Triple() for _ in range(3))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            a, b, c = block(a, b, c)
        return a.sum() + b.sum() + c.sum()


def test_three_tensors() -> None:
    given = torch.randn(2, 4), torch.randn(3, 4), torch.randn(5, 4)
    (stream,) = mn.find_streams(Triples(), given)
    assert stream.shapes == ((2, 4), (3, 4), (5, 4))
    found = []
    for backward in ("stored", "reversible"):
        net = mn.convert(Triples(), given, backward=backward)
        net(*given).backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert_same_gradients(*found)


def passed_on(make: Callable[[Tensor], Tensor]) -> type[nn.Module]:
    class Aside(Double):
        def forward(self, image: Tensor, text: Tensor) -> Any:
            return image + self.attended(image, text)[0], make(text)

    return Aside


@pytest.mark.parametrize("make", [lambda text: text, lambda text: text * 1.5], ids=["itself", "scaled"])
def test_what_is_handed_on_without_work_is_no_stream(make: Callable[[Tensor], Tensor]) -> None:
    net = Net(block=passed_on(make))
    (stream,) = mn.find_streams(net, both())
    assert stream.companions == ()


@pytest.mark.parametrize("which", [0, 1])
def test_magnitude_and_spread_are_of_both(which: int) -> None:
    net = Net()
    with torch.no_grad():
        net.stems[which].weight.mul_(1000)
    (stream,) = mn.find_streams(net, both())
    start = net.stems[which](both()[which]).abs().max().item()
    assert stream.start_magnitude == pytest.approx(start)
    assert stream.magnitude >= start
    assert stream.spread > 500
