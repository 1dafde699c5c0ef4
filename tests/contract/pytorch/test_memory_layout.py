"""Blocks are given the memory layout that blocks of the network as it is give to one another, there and back."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.convnext import CNBlock
from torchvision.models.vision_transformer import EncoderBlock

import momentumnet as mn
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.rules.momentum import Momentum
from momentumnet.core.state.coupling import Coupling
from tests.contract.reference import COUPLED

GAMMA = Fraction(1, 8)
DEPTH = 4


class ChannelsLast(nn.Module):
    """A convolution whose weights lie in channels-last order, and so does what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh() + x


class Turned(nn.Module):
    """Works on (tokens, batch, width), as recurrent layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        along = x.transpose(0, 1).contiguous()
        return (along + self.layer(along).tanh()).transpose(0, 1)


class Added(nn.Module):
    """Works on its input as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x).tanh()


BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (lambda: EncoderBlock(2, 6, 12, 0.0, 0.0), (3, 5, 6)),
    "convnext": (lambda: CNBlock(6, 1.0, 0.0), (3, 6, 4, 5)),
    "channels last": (ChannelsLast, (3, 6, 4, 5)),
    "turned": (Turned, (3, 5, 6)),
}


def network(kind: str) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    make, shape = BLOCKS[kind]
    return nn.Sequential(*(make() for _ in range(DEPTH))), torch.randn(shape, requires_grad=True)


def strides_in(model: nn.Module, seen: list[tuple[int, tuple[int, ...]]]) -> None:
    for number, block in enumerate(model.children()):
        block.register_forward_pre_hook(lambda _, args, number=number: seen.append((number, args[0].stride())))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(
    "options",
    [{"gamma": GAMMA}, {"gamma": GAMMA, "backward": "stored"}, {"gamma": GAMMA, "arithmetic": "float"}, *COUPLED],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_blocks_are_called_on_the_strides_of_the_network_as_it_is(kind: str, options: dict[str, Any]) -> None:
    model, x = network(kind)
    expected: list[tuple[int, tuple[int, ...]]] = []
    strides_in(model, expected)
    output = model(x)
    assert expected[0][1] != expected[1][1], "else this tests nothing"

    model, x = network(kind)
    seen: list[tuple[int, tuple[int, ...]]] = []
    strides_in(model, seen)
    converted = mn.convert(model, x, inplace=True, **options)
    seen.clear()
    with torch.no_grad():
        assert converted(x).stride() == output.stride()
    assert seen == expected, "in plain floats"
    seen.clear()
    found = converted(x)
    assert (seen, found.stride()) == (expected, output.stride())
    seen.clear()
    found.square().sum().backward(retain_graph=True)
    assert seen == ([] if "stored" in options.values() else expected[::-1]), "recomputed"
    found.square().sum().backward()
    assert set(seen) <= set(expected), "forward again, for a second backward"


def by_the_rule(blocks: nn.Sequential, x: Tensor, v: Tensor) -> Tensor:
    """v <- gamma v + (1 - gamma) (block(x) - x), x <- x + v, and what v still holds back at the end."""
    gamma = float(GAMMA)
    for block in blocks:
        v = gamma * v + (1 - gamma) * (block(x) - x)
        x = x + v
    return x + gamma / (1 - gamma) * v


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("moving", [False, True], ids=["from rest", "with a velocity"])
def test_gradients_are_those_of_the_rule_in_float64(kind: str, moving: bool, watched: list[bool]) -> None:
    (model, x), (wide, _) = network(kind), network(kind)
    wide, x_wide = wide.double(), x.detach().double().requires_grad_()
    converted = mn.convert(model, x, gamma=GAMMA, initial_velocity=nn.Identity() if moving else None)
    weights = torch.randn(x.shape, dtype=torch.float64)
    found = torch.autograd.grad((converted(x) * weights).sum(), [x, *converted.parameters()])
    output = by_the_rule(wide, x_wide, x_wide if moving else torch.zeros_like(x_wide))
    expected = torch.autograd.grad((output * weights).sum(), [x_wide, *wide.parameters()])
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    assert watched == [True] * DEPTH


class Flat(Turned):
    """Takes its input as one list of vectors, which nothing but (tokens, batch, width) in memory allows."""

    def forward(self, x: Tensor) -> Tensor:
        along = x.transpose(0, 1)
        return x + self.layer(along.view(-1, x.shape[-1])).tanh().view(along.shape).transpose(0, 1)


def test_blocks_may_rely_on_the_layout_that_they_give_one_another() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Turned(), Flat(), Flat()), torch.randn(3, 5, 6, requires_grad=True)
    stored, exact = (mn.convert(model, x, gamma=GAMMA, backward=backward) for backward in ("stored", "reversible"))
    expected = torch.autograd.grad(stored(x).square().sum(), [x, *stored.parameters()])
    found = torch.autograd.grad(exact(x).square().sum(), [x, *exact.parameters()])
    assert all(map(torch.equal, found, expected))


class FlatStart(Turned):
    """Takes its input as one list of vectors, which only the order of a stream's start allows."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.layer(x.view(-1, x.shape[-1])).tanh().view(x.shape)
        return (x + f).transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize(
    "options", [{"gamma": GAMMA}, *COUPLED], ids=lambda options: " ".join(map(str, options.values()))
)
def test_the_first_block_may_rely_on_the_layout_of_the_start(options: dict[str, Any], arithmetic: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(FlatStart(), Flat(), Flat()), torch.randn(3, 5, 6, requires_grad=True)
    options = {**options, "arithmetic": arithmetic}
    found = []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, x, **options, backward=backward)
        torch.manual_seed(1)  # BDIA draws
        found.append(torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()]))
    for expected, recomputed in zip(*found, strict=True):
        assert (recomputed - expected).norm() <= 1e-4 * expected.norm()


STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "repeated": lambda x: x[:1].expand(3, -1, -1),
    "without its first token": lambda x: x[:, 1:],
    "every second": lambda x: x[::2],
    "of half its width": lambda x: x.repeat(1, 1, 2)[..., 3:9],
}


@pytest.mark.parametrize("options", [{"gamma": 0.5}, {"coupling": "bdia"}])
@pytest.mark.parametrize("start", STARTS)
def test_floats_start_from_a_part_of_a_tensor_that_needs_a_gradient(start: str, options: dict[str, Any]) -> None:
    """A layer copies it to see its rows as a matrix; what the inverse gives back of it is a matrix already."""
    torch.manual_seed(0)
    net, x = nn.Sequential(*(Added() for _ in range(DEPTH))), torch.randn(3, 5, 6, requires_grad=True)
    gradients = []
    for backward in ("stored", "reversible"):
        converted = mn.convert(net, streams=[""], arithmetic="float", backward=backward, **options)
        torch.manual_seed(1)
        output = converted(STARTS[start](x))
        gradients.append(torch.autograd.grad(output.square().sum(), [x, *converted.parameters()]))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
def test_halves_of_the_last_dimension(arithmetic: str) -> None:
    torch.manual_seed(0)
    functions = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
    x = torch.randn(3, 5, 12, requires_grad=True)
    net = mn.ReversibleSequential(*functions, split_dim=-1, arithmetic=arithmetic)
    first, second = x.chunk(2, -1)
    first = first + functions[0](second)
    second = second + functions[1](first)
    first = first + functions[2](second)
    expected = torch.autograd.grad(first.square().sum() + second.square().sum(), list(net.parameters()))
    found = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [Momentum(Fraction(1, 2)), mn.Dr2Net(beta=1 / 2)], ids=["momentum", "dr2net"])
def test_a_state_of_floats_goes_back_on_its_own_device(rule: Coupling) -> None:
    """PyTorch makes tensors on the CPU where no device is named; "meta" stands for any other."""
    x, y = torch.empty(3, 5, 6, device="meta"), torch.empty(5, 3, 6, device="meta").transpose(0, 1)
    state, weight = rule.floats(x, torch.empty_like(x)), Fraction(1, 2)
    undone = [state.step(Branch(y), weight), state.step(Branch(y), weight)]
    for undo in reversed(undone):
        assert state.previous_position(undo, torch.float32).is_meta
        state.undo(undo, Branch(y), weight)
    assert state.position(torch.float32).stride() == x.stride()


@pytest.mark.parametrize("first", [float("nan"), 3e4], ids=["NaN", "outgrows its scale"])
def test_a_first_block_whose_branch_is_looked_at_again(first: float) -> None:
    """The state is played again from its start, or left there; in both cases it lies as the block has returned."""
    model, x = network("channels last")
    stored, exact = (mn.convert(model, x, gamma=GAMMA, backward=backward) for backward in ("stored", "reversible"))
    for net in (stored, exact):
        net(x).sum().backward()
    with torch.no_grad():
        x[0, 0, 0, 0] = first
    expected = torch.autograd.grad(stored(x).sum(), [x, *stored.parameters()])
    found = torch.autograd.grad(exact(x).sum(), [x, *exact.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


class Straight(Turned):
    """Returns (batch, tokens, width) in memory, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.layer(x).tanh()).contiguous()


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("place", [None, 0, 1, 2], ids=["at the start", "first", "second", "third"])
def test_nan_in_a_stream_whose_blocks_return_different_orders(place: int | None, arithmetic: str) -> None:
    """The graph of the forward that is played again goes by the order that its blocks were given."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Straight(), Turned(), Straight(), Straight()), torch.randn(3, 5, 6)
    start = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    nets = [mn.convert(model, x, gamma=GAMMA, backward=how, arithmetic=arithmetic) for how in ("stored", "reversible")]
    found = []
    for net in nets:
        net(start).sum().backward()
        if place is None:
            with torch.no_grad():
                start[0, 0, 0] = float("nan")
        else:
            net[place].layer.bias.data[0] = float("nan")
        found.append(torch.autograd.grad(net(start).sum(), [start, *net.parameters()]))
        with torch.no_grad():
            start[0, 0, 0] = 1.0
    for stored, played_again in zip(*found, strict=True):
        torch.testing.assert_close(played_again, stored, rtol=0, atol=1e-5, equal_nan=True)


class Copies(TorchDispatchMode):
    """Counts the copies of tensors of ``size`` elements into another order."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.copy_.default, torch.ops.aten.clone.default) and args[0].numel() == self._size:
            others = args[1] if func is torch.ops.aten.copy_.default else output
            self.count += args[0].stride() != others.stride()
        return output


def test_what_blocks_return_is_not_copied_at_each_step() -> None:
    counts = []
    for depth in (3, 6):
        torch.manual_seed(0)
        model, x = nn.Sequential(*(ChannelsLast() for _ in range(depth))), torch.randn(3, 6, 4, 5, requires_grad=True)
        converted = mn.convert(model, x, gamma=GAMMA)
        loss = converted(x).square().sum()
        with Copies(x.numel()) as copies:
            loss = converted(x).square().sum()
            loss.backward()
        counts.append(copies.count)
    assert counts[0] == counts[1]
