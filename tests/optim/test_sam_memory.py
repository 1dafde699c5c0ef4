"""The copy that a perturbation costs: of all parameters, or of one block at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import momentumnet as mn
from momentumnet.optim import SAM, Extragradient
from tests.models import WIDTH, Chain, ResidualMLP
from tests.optim.nets import closure_of

SMALL = 8192  # norms, the loss, activations of one sample more or less


def wide() -> nn.Sequential:
    return nn.Sequential(nn.Linear(128, 512), nn.Tanh(), nn.Linear(512, 256), nn.Tanh(), nn.Linear(256, 4))


def bytes_of(net: nn.Module) -> int:
    return sum(p.nbytes for p in net.parameters())


def peak(net: nn.Module, optimizer: Optimizer) -> int:
    x = torch.ones(1, 128)
    closure = closure_of(optimizer, lambda: net(x).square().mean())
    optimizer.step(closure)  # the state of the base optimizer is there from the first step on
    optimizer.zero_grad()
    return mn.measure_memory(lambda: optimizer.step(closure)).peak_bytes


@pytest.mark.parametrize(
    "make",
    [
        lambda net: SAM(net.parameters(), SGD, lr=0.1, foreach=True),
        lambda net: SAM(net.parameters(), SGD, adaptive=True, lr=0.1, foreach=True),
        lambda net: Extragradient(net.parameters(), SGD, lr=0.1, foreach=True),
    ],
    ids=["sam", "adaptive", "extragradient"],
)
def test_one_extra_copy_of_the_parameters_at_peak(make: Callable[[nn.Module], Optimizer]) -> None:
    net = wide()
    extra = peak(net, make(net)) - peak(net, SGD(net.parameters(), lr=0.1, foreach=True))
    assert bytes_of(net) - SMALL <= extra <= bytes_of(net) + SMALL


def test_blocks_cost_a_copy_of_the_largest() -> None:
    net = wide()
    base = peak(net, SGD(net.parameters(), lr=0.1))
    extra = []
    for index in (0, 2, 4):
        optimizer = SAM(net.parameters(), SGD, lr=0.1, blocks=[list(net[index].parameters())])
        extra.append(peak(net, optimizer) - base)
        assert extra[-1] <= bytes_of(net[index]) + SMALL
    assert extra[1] > bytes_of(net[2]) - SMALL


def test_sparse_gradients_cost_their_rows() -> None:
    table = nn.Embedding(20000, 16, sparse=True)
    optimizer = SAM(table.parameters(), SGD, lr=0.1)
    closure = closure_of(optimizer, lambda: table(torch.tensor([5, 9])).square().mean())
    assert mn.measure_memory(lambda: optimizer.step(closure)).peak_bytes < SMALL + bytes_of(table) // 20


def moved(net: nn.Module, optimizer: SAM, closure: Callable[[], Tensor]) -> set[str]:
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    closure()
    optimizer.first_step()
    names = {name.rsplit(".", 1)[0] for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    closure()
    optimizer.second_step()
    return names


def test_blocks_take_turns_and_a_resumed_run_goes_on_with_the_next() -> None:
    net = wide()
    blocks = [list(net[index].parameters()) for index in (0, 4)]
    optimizer = SAM(net.parameters(), SGD, lr=0.1, blocks=blocks)
    closure = closure_of(optimizer, lambda: net(torch.ones(1, 128)).square().mean())
    assert [moved(net, optimizer, closure) for _ in range(3)] == [{"0"}, {"4"}, {"0"}]

    resumed = SAM(net.parameters(), SGD, lr=0.1, blocks=blocks)
    resumed.load_state_dict(optimizer.state_dict())
    assert moved(net, resumed, closure) == {"4"}


@pytest.mark.parametrize("converted", [False, True])
def test_one_residual_stream_at_a_time(converted: bool) -> None:
    torch.manual_seed(0)
    net, x = Chain([ResidualMLP() for _ in range(3)]), torch.randn(6, WIDTH)
    streams = mn.find_streams(net, x)
    net = mn.convert(net, x) if converted else net
    optimizer = SAM(net.parameters(), SGD, lr=0.1, model=net, blocks=[*streams, net.head.parameters()])
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    closure = closure_of(optimizer, lambda: net(x).square().mean())
    closure()
    norm = torch.cat([p.grad.flatten() for p in net.blocks.parameters()]).norm()
    gradient = net.blocks[1].inner[0].weight.grad.clone()
    optimizer.first_step()
    weight = net.blocks[1].inner[0].weight
    torch.testing.assert_close(weight - before["blocks.1.inner.0.weight"], 0.05 * gradient / norm, rtol=1e-3, atol=1e-7)
    assert all(name.startswith("blocks") or torch.equal(p, before[name]) for name, p in net.named_parameters())
    optimizer.restore()
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    optimizer.step(closure)
    assert moved(net, optimizer, closure) == {"head"}
