"""A recompute takes the batch's statistics from forward: same bits as measured again, and nothing else changes."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.recompute.buffers import norm_calls
from tests.contract.norms.normed_nets import Block, Net, images, measured_in_backward, pair
from tests.contract.reference import assert_same, loss_of, train_step

NORMS = {
    "1d": (nn.BatchNorm1d, images(1)),
    "1d without places": (nn.BatchNorm1d, images(0)),
    "2d": (nn.BatchNorm2d, images()),
    "2d channels last": (nn.BatchNorm2d, images().contiguous(memory_format=torch.channels_last)),
    "3d": (nn.BatchNorm3d, images(3)),
    "no weight": (lambda width: nn.BatchNorm2d(width, affine=False), images()),
    "no running statistics": (lambda width: nn.BatchNorm2d(width, track_running_stats=False), images()),
    "cumulative average": (lambda width: nn.BatchNorm2d(width, momentum=None), images()),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("frozen", [False, True])
def test_same_bits_without_measuring_again(name: str, frozen: bool) -> None:
    build, x = NORMS[name]
    torch.manual_seed(0)
    model = Net(build).train()
    if frozen:
        for block in model.blocks:
            block.first.requires_grad_(False)
    stored, recomputed = pair(model, x)
    for _ in range(2):  # the second step starts from running statistics that have moved
        assert_same(train_step(recomputed, (x,)), train_step(stored, (x,)), tolerance=0.0)
    assert measured_in_backward(recomputed, x) == 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norms", [torch.float32, torch.bfloat16])
def test_half_precision_without_measuring_again(norms: torch.dtype, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model, x = Net(nn.BatchNorm2d).train().bfloat16(), images().bfloat16().contiguous(memory_format=memory_format)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.to(norms)
    stored, recomputed = pair(model, x)
    for _ in range(2):
        assert_same(train_step(recomputed, (x,)), train_step(stored, (x,)), tolerance=0.0)
    assert measured_in_backward(recomputed, x) == 0


def test_norm_that_is_called_twice() -> None:
    torch.manual_seed(0)
    stored, recomputed = pair(Net(nn.BatchNorm2d, twice=True).train(), images())
    assert_same(train_step(recomputed, (images(),)), train_step(stored, (images(),)), tolerance=0.0)
    assert measured_in_backward(recomputed, images()) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda net, x: (net.double(), x.double()),
        lambda net, x: (net, x.transpose(2, 3)),
        lambda net, x: (net.bfloat16(), x.bfloat16()),
        lambda net, x: (net.half(), x.half()),
        lambda net, x: (net.eval(), x),
    ],
)
def test_other_types_layouts_and_modes(change: Callable[[nn.Module, Tensor], tuple[nn.Module, Tensor]]) -> None:
    torch.manual_seed(0)
    outcomes = []
    for net in pair(Net(nn.BatchNorm2d).train(), images()):
        net, x = change(net, images())
        outcomes.append(train_step(net, (x,)))
    assert_same(outcomes[1], outcomes[0], tolerance=0.0)


def test_autocast() -> None:
    torch.manual_seed(0)
    outcomes = []
    for net in pair(Net(nn.BatchNorm2d).train(), images()):
        with torch.autocast("cpu", torch.bfloat16):
            outcomes.append(train_step(net, (images(),)))
    assert_same(outcomes[1], outcomes[0], tolerance=0.0)


def test_empty_batch() -> None:
    torch.manual_seed(0)
    _, net = pair(Net(nn.BatchNorm2d).train(), images())
    net(images()[:0]).sum().backward()
    assert not any(parameter.grad.any() for parameter in net.parameters())


def test_norm_that_the_block_puts_in_eval_mode() -> None:
    class Evaluating(Block):
        def forward(self, x: Tensor) -> Tensor:
            self.first.eval()
            try:
                return super().forward(x)
            finally:
                self.first.train()

    torch.manual_seed(0)
    model = Net(nn.BatchNorm2d).train()
    model.blocks = nn.ModuleList([Evaluating(nn.BatchNorm2d) for _ in range(3)])
    stored, recomputed = (mn.convert(model, streams=["blocks"], backward=b) for b in ("stored", "reversible"))
    assert_same(train_step(recomputed, (images(),)), train_step(stored, (images(),)), tolerance=0.0)


def test_hooks_of_a_norm_run_in_both_passes() -> None:
    torch.manual_seed(0)
    model, calls = Net(nn.BatchNorm2d).train(), []
    stored, recomputed = pair(model, images())
    for net in (stored, recomputed):
        net.blocks[1].first.register_forward_hook(lambda module, args, output: (calls.append(1), 3 * output)[1])
    assert_same(train_step(recomputed, (images(),)), train_step(stored, (images(),)), tolerance=0.0)
    assert len(calls) == 3


def test_nothing_is_left_in_the_model() -> None:
    torch.manual_seed(0)
    _, net = pair(Net(nn.BatchNorm2d).train(), images())
    output = net(images())
    assert not any("forward" in module.__dict__ for module in net.modules())
    pickle.loads(pickle.dumps(net))
    output.sum().backward()
    assert not any("forward" in module.__dict__ for module in net.modules())
    handle = net.blocks[1].second.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(images())
    handle.remove()
    assert not any("forward" in module.__dict__ for module in net.modules())
    assert not norm_calls._REPLACED
    assert not norm_calls._RUNNING.stack


def test_norm_that_is_called_more_often_in_backward_is_an_error() -> None:
    calls = [0]

    class Counting(Block):
        def forward(self, x: Tensor) -> Tensor:
            calls[0] += 1
            return super().forward(self.first(x) if calls[0] > 3 else x)

    model = Net(nn.BatchNorm2d).train()
    model.blocks = nn.ModuleList([Counting(nn.BatchNorm2d) for _ in range(3)])
    net = mn.convert(model, streams=["blocks"])
    with pytest.raises(mn.ReconstructionError, match="BatchNorm2d is called more often in backward"):
        net(images()).sum().backward()


@pytest.mark.parametrize("compiled", ["before", "in place"])
def test_compiled_blocks_are_compiled_once(compiled: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net(nn.BatchNorm2d).train()
    expected = train_step(mn.convert(model, streams=["blocks"], backward="stored"), (images(),))
    if compiled == "before":
        model.blocks = nn.ModuleList([torch.compile(block, backend=backend) for block in model.blocks])
    net = mn.convert(model, streams=["blocks"])
    if compiled == "in place":
        for block in net.blocks:
            block.compile(backend=backend)
    got = train_step(net, (images(),))
    count = len(graphs)
    assert count
    for seed in range(3):
        train_step(net, (images(),), seed=seed)
    assert len(graphs) == count
    assert torch.equal(got.output, expected.output)
    gradients = zip(got.gradients.values(), expected.gradients.values(), strict=True)
    assert all(torch.equal(*both) for both in gradients)
    torch._dynamo.reset()


def test_threads_that_share_a_model() -> None:
    torch.manual_seed(0)
    _, net = pair(Net(nn.BatchNorm2d).train(), images())
    inside, gradients = threading.Barrier(2, timeout=30), {}
    net.blocks[1].first.register_forward_pre_hook(lambda module, args: (inside.wait(), None)[1])

    def work(seed: int) -> None:
        gradients[seed] = torch.autograd.grad(loss_of(net(images(seed=seed))), list(net.parameters()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gradients) == 2
    net.blocks[1].first._forward_pre_hooks.clear()
    for seed, got in gradients.items():
        expected = torch.autograd.grad(loss_of(net(images(seed=seed))), list(net.parameters()))
        assert all(map(torch.equal, got, expected))
    assert not norm_calls._REPLACED
