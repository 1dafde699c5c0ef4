"""Saved tensors in host memory: the same gradients to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.recompute.saved import offloaded_tensors
from tests.contract.reference import assert_same, train_step
from tests.core.offloading import ALL, MODULES, built, offloading, waves
from tests.recompute.late_copies import LateCopies


@pytest.mark.parametrize("units", [ALL, ALL[1:2], (ALL[0], ALL[2])], ids=["all", "one", "every second"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_those_of_plain_training(
    copies: LateCopies, name: str, dtype: torch.dtype, units: tuple[tuple[str, str | None], ...]
) -> None:
    model, x = built(name, dtype)
    expected = train_step(copy.deepcopy(model), (x,))
    net = offloading(model, *units)
    for _ in range(2):  # in the second step host memory is used again
        net.load_state_dict(model.state_dict())
        net.zero_grad()
        assert_same(train_step(net, (x,)), expected, tolerance=0.0)
    assert copies.sent
    assert "fetch" in {what for what, _ in copies.log} or name == "checkpoint"


@pytest.mark.parametrize("name", ["images", "attention"])
def test_under_autocast(copies: LateCopies, name: str) -> None:
    model, x = built(name)
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = (train_step(net, (x,)) for net in (copy.deepcopy(model), offloading(model, *ALL)))
    assert_same(got, expected, tolerance=0.0)
    assert copies.sent


@pytest.mark.parametrize("retained", [False, True])
def test_two_passes_and_two_backwards(copies: LateCopies, retained: bool) -> None:
    model, x = built("attention")
    plain, net = copy.deepcopy(model), offloading(model, *ALL)
    for each in (plain, net):
        losses = [each(scale * x).sum() for scale in (1, 2)]
        for loss in losses:
            loss.backward(retain_graph=retained)
        for loss in losses if retained else ():
            loss.backward()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_backward_that_is_differentiated_again(copies: LateCopies) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))).double()
    x = torch.randn(64, 16, dtype=torch.float64)
    found = []
    for net in (model, offloading(model, *ALL)):
        given = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(given).square().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [given, *net.parameters()], allow_unused=True))
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    assert copies.sent


def test_gradients_of_a_part_do_not_fetch_the_rest(copies: LateCopies) -> None:
    model, x = built("attention")
    net = offloading(model, *ALL[:3])
    weight = net[3].out.weight
    torch.autograd.grad(net(x).sum(), weight)  # no gradient comes out of the last module
    assert ("fetch", 0) not in copies.log


class InPlace(nn.Module):
    """Changes a tensor that was saved."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid()
        self.change(y)
        return y * 2


@pytest.mark.parametrize(
    "change",
    [lambda y: y.mul_(2), lambda y: y[0].zero_(), lambda y: y.detach().add_(1), lambda y: y.t().add_(1)],
    ids=["itself", "view", "detached", "transposed"],
)
@pytest.mark.parametrize("smallest", [1024, 1 << 20], ids=["moved", "kept"])
def test_a_change_in_place_is_found_where_plain_autograd_finds_it(
    copies: LateCopies, monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], object], smallest: int
) -> None:
    monkeypatch.setattr(offloaded_tensors, "SMALLEST", smallest)
    model = nn.Sequential(InPlace(change), nn.Identity())
    x = torch.randn(32, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(x).sum().backward()
    net = offloading(model, ("0", "1"))
    with pytest.raises(mn.ReconstructionError, match=r"'0': a tensor of shape \(32, 32\) .* changed in place"):
        net(x).sum().backward()


def test_a_change_between_two_savings_keeps_both(copies: LateCopies) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.5
            first = torch.zeros(()).requires_grad_() * y.detach()  # saves y as it is now
            copies.end()  # and the device is quick to copy it
            y.add_(1)
            return y.sin() + first.detach()

    model = nn.Sequential(Twice(), nn.Identity())
    x = torch.randn(32, 32, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    (got,) = torch.autograd.grad(offloading(model, ("0", "1"))(x).sum(), x)
    assert torch.equal(got, expected)


def test_a_weight_that_was_changed_is_found(copies: LateCopies) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    x = torch.randn(64, 32, requires_grad=True)
    net = offloading(model, ("0", "1"))
    output = net(x)
    with torch.no_grad():
        net[0].weight.mul_(2)
    with pytest.raises(mn.ReconstructionError, match=r"shape \(32, 32\).*changed in place"):
        output.sum().backward()


class Looking(torch.autograd.Function):
    """Shows what comes back to backward."""

    found: ClassVar[list[Tensor]] = []

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        ctx.save_for_backward(given)
        return given.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Looking.found[:] = ctx.saved_tensors
        return gradient


@pytest.mark.parametrize(
    "x",
    [torch.randn(2, 4, 16, 16).contiguous(memory_format=torch.channels_last), torch.randn(40, 40).t()],
    ids=["channels last", "transposed"],
)
def test_layout_comes_back(copies: LateCopies, x: Tensor) -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Looking.apply((x * 2)[:, 1:3])

    net = offloading(nn.Sequential(Parts(), nn.Identity()), ("0", "1"))
    net(x.requires_grad_()).sum().backward()
    like, (found,) = (2 * x)[:, 1:3].detach(), Looking.found
    assert found.untyped_storage().nbytes() == like.untyped_storage().nbytes()
    assert (found.stride(), found.storage_offset()) == (like.stride(), like.storage_offset())
    assert torch.equal(found, like)
    Looking.found.clear()


def test_without_gradients_nothing_is_moved(copies: LateCopies) -> None:
    model, x = waves()
    net = offloading(model, *ALL)
    with torch.no_grad():
        net(x)
    with torch.inference_mode():
        net(x)
    torch.func.grad(lambda given: net(given).sum())(x.detach())
    assert not copies.sent


def test_compiled_blocks(copies: LateCopies) -> None:
    model, x = built("attention")
    expected = train_step(copy.deepcopy(model), (x,))
    net = offloading(model, *ALL)
    for layer in net:
        layer.compile(backend="aot_eager")
    assert_same(train_step(net, (x,)), expected, tolerance=1e-6)
    assert copies.sent
