"""Saved tensors in host memory: when they leave the device and come back, and what becomes of the memory."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import momentumnet as mn
from momentumnet.core.outside.offload import Offload
from momentumnet.recompute.saved import host_copies, offloaded_tensors
from momentumnet.streams.blocks.converted import converted_blocks
from momentumnet.streams.blocks.roles import apply, offloaded
from tests.contract.reference import assert_same, train_step
from tests.core.offloading import ALL, built, offloading, waves
from tests.recompute.late_copies import LateCopies


def test_the_device_lets_go_when_the_unit_behind_has_run(copies: LateCopies) -> None:
    model, x = waves()
    found: list[list[int]] = []
    net = offloading(model, ("1", "2"))
    for layer in net:
        layer.register_forward_hook(lambda *_: found.append(copies.on_the_device))
    output = net(x)
    # Storage 0 is the input of unit 1, which unit 0 keeps; 1 is inside; 2 the output, which unit 2 keeps.
    assert found == [[], [0, 1, 2], [0, 1, 2], [0, 2]]
    assert copies.log == [("send", 0), ("send", 1), ("send", 2)][: len(copies.sent)]
    output.sum().backward()
    assert [what for what in copies.log if what[0] == "fetch"] == [("fetch", 1)]


def test_units_in_a_row_leave_one_by_one_and_share_what_they_share(copies: LateCopies) -> None:
    model, x = waves()
    net = offloading(model, *ALL[:3])
    output = net(x)
    assert len(copies.sent) == 4 + 3  # x, and of each unit what it has inside and what it returns, once
    # What the third one returned was returned to the last one, which keeps it; x is the caller's.
    assert copies.on_the_device == [0, 6]
    output.sum().backward()
    order = [number for what, number in copies.log if what == "fetch"]
    assert order == sorted(order, reverse=True)
    assert len(order) == 5


def test_what_backward_needs_next_comes_while_the_unit_behind_goes_back(copies: LateCopies) -> None:
    model, x = waves()
    net = offloading(model, ("1", "2"))
    seen: list[tuple[str, int]] = []
    hidden = net[:2](x)
    output = net[2](hidden)
    hidden.register_hook(lambda _: seen.append(copies.log[-1]))  # the gradient leaves unit 2
    output.sum().backward()
    assert seen == [("fetch", 1)]


def test_host_memory_is_used_again(copies: LateCopies) -> None:
    model, x = built("images")
    net = offloading(model, *ALL)
    counts = []
    for _ in range(3):
        net(x).sum().backward()
        counts.append(len(copies.buffers))
    assert counts[0] == counts[1] == counts[2] > 0


def test_host_memory_of_a_forward_without_backward_is_given_back(copies: LateCopies) -> None:
    model, x = waves()
    net = offloading(model, *ALL)
    for _ in range(3):
        net(x)
        count = len(copies.buffers)
    net(x).sum().backward()
    assert len(copies.buffers) == count == len(set(copies.buffers))


def test_what_leaves_with_nobody_behind_does_not_pile_up(copies: LateCopies) -> None:
    model, x = waves(1)
    net = offloading(model, ("0", None))
    first = net(x)
    second = net(x)  # lets go of the first pass
    torch.stack([first.sum(), second.sum()]).sum().backward()
    assert ("fetch", 1) in copies.log
    assert torch.equal(x.grad, 2 * torch.autograd.grad(model(x).sum(), x)[0])


@pytest.mark.parametrize("smallest", [1024, 1 << 20], ids=["moved", "kept"])
def test_what_nobody_needs_any_more_is_gone_at_once(
    copies: LateCopies, monkeypatch: pytest.MonkeyPatch, smallest: int
) -> None:
    monkeypatch.setattr(offloaded_tensors, "SMALLEST", smallest)
    net = offloading(nn.Sequential(nn.Sigmoid(), nn.Tanh()), ("0", "1"), ("1", None))
    output = net(torch.randn(32, 32, requires_grad=True))
    storage = StorageWeakRef(output.untyped_storage())
    gc.disable()
    try:
        del output
        assert storage.expired()
    finally:
        gc.enable()


def test_parameters_buffers_and_small_tensors_stay(copies: LateCopies) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64))
            self.register_buffer("mask", torch.rand(8, 64))
            self.small = nn.Parameter(torch.randn(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            return ((x @ self.weight.t()[:, :64]) * self.mask * self.small.exp()).sin()

    net = offloading(nn.Sequential(Weighted(), nn.Identity()), ("0", "1"))
    net(torch.randn(8, 64)).sum().backward()
    assert len(copies.sent) == 3  # x, what the small one is multiplied with, and what the sine is of


def test_an_input_that_others_hold_stays(copies: LateCopies) -> None:
    model, x = waves(2)
    sent = []
    for input_stays in (False, True):
        net, before = copy.deepcopy(model), len(copies.sent)
        apply(net, [], offloaded([Offload(["0"], "1", input_stays=input_stays)]))
        net(x).sum().backward()
        sent.append(len(copies.sent) - before)
    assert sent == [3, 2]


def test_copies_and_pickles_hold_no_memory(copies: LateCopies) -> None:
    model, x = built("attention")
    net = offloading(model, *ALL)
    net(x).sum().backward()
    file = io.BytesIO()
    torch.save(net, file)
    plain = io.BytesIO()
    torch.save(model, plain)
    assert len(file.getvalue()) < len(plain.getvalue()) + 4096
    file.seek(0)
    expected = train_step(copy.deepcopy(model), (x,))
    for again in (torch.load(file, weights_only=False), copy.deepcopy(net)):
        before = len(copies.sent)
        again.zero_grad(set_to_none=True)
        assert_same(train_step(again, (x,)), expected, tolerance=0.0)
        assert len(copies.sent) > before
    assert not list(converted_blocks(mn.revert(net)))


def test_host_memory_is_kept_by_sizes_of_four_to_a_doubling() -> None:
    sizes = {host_copies._class_of(count) for count in range(1 << 10, 1 << 11)}
    assert sizes == {1024, 1280, 1536, 1792, 2048}
    assert all(count <= host_copies._class_of(count) <= 1.25 * count for count in range(4, 5000))
