"""Norms whose statistics are kept, in blocks that do more than call them: hooks, nested streams, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from momentumnet.recompute.buffers import norm_calls
from tests.contract.norms.two_norms import WIDTH, Block, Step, images, pair, past_the_module, plainly
from tests.contract.reference import assert_same, loss_of, train_step


def in_a_checkpoint(block: Block, x: Tensor) -> Tensor:
    return checkpoint(lambda y: plainly(block, y), x, use_reentrant=False)


def saved_on_cpu(block: Block, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return plainly(block, x)


def moving_statistics_itself(block: Block, x: Tensor) -> Tensor:
    block.first.running_mean.data.mul_(0.5)
    return plainly(block, x)


@pytest.mark.parametrize("step", [saved_on_cpu, moving_statistics_itself, past_the_module])
def test_blocks_that_do_more_than_call_their_norms(step: Step) -> None:
    stored, reversible = pair(step)
    assert_same(train_step(reversible, (images(),)), train_step(stored, (images(),)), tolerance=0.0)


def test_checkpoint_inside_a_block() -> None:
    stored, reversible = pair(in_a_checkpoint)
    got, expected = (train_step(net, (images(),)) for net in (reversible, stored))
    for name, gradient in expected.gradients.items():
        assert torch.equal(got.gradients[name], gradient), name  # buffers: the checkpoint moves them twice


def test_hooks_that_change_buffers_of_a_norm_count_once() -> None:
    nets = pair()
    for net in nets:
        norm = net[1].first
        norm.register_buffer("calls", torch.zeros(()))
        norm.register_forward_hook(lambda module, args, output: (module.calls.add_(1), None)[1])
        norm.register_forward_hook(lambda module, args, output: (module.running_mean.data.mul_(0.9), None)[1])
    outcomes = [train_step(net, (images(),)) for net in nets]
    assert_same(outcomes[1], outcomes[0], tolerance=0.0)


class Inner(nn.Module):
    """One norm that is measured again, as its input has gaps, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.transpose(2, 3)).transpose(2, 3).contiguous()))


class Outer(nn.Module):
    def __init__(self, *, use_backprop: bool) -> None:
        super().__init__()
        self.inner = mn.MomentumNet([Inner(), Inner()], 0.5, use_backprop=use_backprop)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))


def test_streams_in_blocks_of_streams() -> None:
    outcomes = []
    for use_backprop in (True, False):
        torch.manual_seed(0)
        outer = [Outer(use_backprop=use_backprop) for _ in range(2)]
        outcomes.append(train_step(mn.MomentumNet(outer, 0.5, use_backprop=use_backprop).train(), (images(),)))
    for name, buffer in outcomes[0].buffers.items():
        torch.testing.assert_close(outcomes[1].buffers[name], buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_made_during_a_block_call(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    _, net = pair()
    copies: list[nn.Module] = []
    handle = net[1].register_forward_hook(lambda block, args, output: copies.append(duplicate(block.first)))
    net(images())
    handle.remove()
    (norm,) = copies
    assert not norm_calls._REPLACED
    pickle.loads(pickle.dumps(norm))
    expected = nn.BatchNorm2d(WIDTH)
    expected.load_state_dict(norm.state_dict())
    assert torch.equal(norm(images()), expected(images()))
    assert torch.equal(norm.running_mean, expected.running_mean)


@pytest.mark.parametrize("backward", ["stored", "reversible"])
def test_batched_gradients(backward: str) -> None:
    net, x = pair()[backward == "reversible"].eval(), images().requires_grad_()
    y = net(x)
    weights = torch.randn(3, *y.shape)
    (got,) = torch.autograd.grad(y, x, weights, is_grads_batched=True, retain_graph=True)
    for weight, gradient in zip(weights, got, strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(y, x, weight, retain_graph=True)[0])


class Renormalised(nn.BatchNorm2d):
    """A norm of somebody's own that reads its statistics in training, and moves them by torch's kernel (no count)."""

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean.clone()[:, None, None], self.running_var.clone()[:, None, None]
        normalised = super().forward(x)
        return normalised * (1 + variance).rsqrt() + 0.1 * mean


@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
def test_norms_that_read_their_statistics_in_training(backward: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[Block() for _ in range(3)])
    for block in model:
        block.first = Renormalised(WIDTH)
    found, stored = (mn.convert(model, images(), backward=kind) for kind in (backward, "stored"))
    for _ in range(3):
        assert_same(train_step(found, (images(),)), train_step(stored, (images(),)), tolerance=0.0)
    for net in (found, stored):  # two forwards in front of their backwards
        net.zero_grad()
        losses = [net(factor * images()).square().mean() for factor in (1, -2)]
        losses[1].backward()
        losses[0].backward()
    for one, other in zip(found.parameters(), stored.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(found.buffers(), stored.buffers(), strict=True):
        assert torch.equal(one, other)


class Copying(TorchDispatchMode):
    """Counts the copies of the tensor at one place in memory, or to it."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.count, self._place = 0, place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("clone", "copy")):
            given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.count += any(leaf.data_ptr() == self._place for leaf in given)
        return func(*args, **(kwargs or {}))


def copies_in_backward(net: nn.Module, name: str) -> int:
    """Of a statistic that is held in its table alone."""
    counts, place = [], getattr(net[1].first, name).data_ptr()

    def backward(output: Tensor) -> None:
        with Copying(place) as copying:
            loss_of(output).backward()
        counts.append(copying.count)

    train_step(net, (images(),), backward=backward)
    return counts[0]


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
def test_no_copy_of_running_statistics_that_a_recompute_leaves_alone(name: str) -> None:
    _, net = pair()
    assert copies_in_backward(net, name) == 0
    _, net = pair(past_the_module)
    assert copies_in_backward(net, name) == 2  # kept, and written back
    assert all(type(module._buffers) is dict for module in net.modules())


def test_copies_made_in_a_recompute_have_plain_tables() -> None:
    _, net = pair()
    norm, copies = net[1].first, []

    def duplicated(block: nn.Module, args: Any, output: Tensor) -> None:
        copies.extend([copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))])

    handle = net[1].register_forward_hook(duplicated)
    train_step(net, (images(),))
    handle.remove()
    assert len(copies) == 4
    for duplicate in copies:
        assert type(duplicate._buffers) is dict
        assert duplicate.running_mean.shape == (WIDTH,)
        duplicate(images())
