"""Recomputed tensors are freed as soon as backward has used them, and are there again for who asks again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from momentumnet.recompute.saved.collected_tensors import Collected
from tests.contract.reference import assert_same, loss_of, train_step

WIDTH, HIDDEN = 8, 64
WAYS: list[dict[str, Any]] = [{"backward": "reversible"}, {"backward": "checkpointed"}]


class Mlp(nn.Module):
    """The gradient of its last bias is a sum that its last layer makes last of all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(torch.tanh(self.first(x)))


def rows() -> Tensor:
    return torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def chain(block: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(block() for _ in range(3)))


class AtSums(TorchDispatchMode):
    """How many of the tensors that are watched are there whenever something is summed."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[weakref.ref[Tensor]] = []
        self.there: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.sum.dim_IntList and args[0].shape[-1] == WIDTH:
            self.there.append(sum(reference() is not None for reference in self.watched))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_bias_is_summed_when_what_its_layer_multiplied_with_is_gone(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = mn.convert(chain(Mlp), rows(), **options)
    loss_of(net(rows())).backward()
    sums = AtSums()
    collect = Collected._collect

    def watched(collected: Collected, tensor: Tensor) -> Any:
        try:
            return collect(collected, tensor)
        finally:
            if tensor.shape[-1] == HIDDEN and tensor.shape[0] == rows().numel() // WIDTH:
                sums.watched.append(weakref.ref(collected._tensors[-1][0]))

    monkeypatch.setattr(Collected, "_collect", watched)
    loss = loss_of(net(rows()))
    with sums:
        loss.backward()
    assert len(sums.watched) >= 3
    assert sums.there == [0] * 3


class Twice(torch.autograd.Function):
    """Asks for its saved tensors twice; with ``drop`` it lets go of them in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drop: bool) -> Tensor:
        y = x.sin()
        ctx.save_for_backward(x, y)
        ctx.drop = drop
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        saved = ctx.saved_tensors
        slope = saved[0].cos()
        if ctx.drop:
            del saved
        x, y = ctx.saved_tensors
        return grad * slope * (x.sin() / y), None


CALLS: list[type] = []


class AsksTwice(Mlp):
    drop = False

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(type(self))
        return x + self.last(Twice.apply(self.first(x), self.drop))


class LetsGo(AsksTwice):
    drop = True


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("block", [AsksTwice, LetsGo])
def test_who_asks_twice_is_given_the_same_twice(block: type[AsksTwice], options: dict[str, Any]) -> None:
    nets = [mn.convert(chain(block), rows(), **{**options, "backward": way}) for way in ("stored", options["backward"])]
    for _ in range(3):
        CALLS.clear()
        expected, got = (train_step(net, (rows(),)) for net in nets)
        assert_same(got, expected, tolerance=0.0)
        assert len(CALLS) == 9  # nothing is recomputed again: 3 calls of the one network, and 6 of the other
        for net in nets:
            net.zero_grad(set_to_none=True)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_graph_that_is_kept_gives_its_gradients_again(options: dict[str, Any]) -> None:
    net = mn.convert(chain(Mlp), rows(), **options)
    parameters = list(net.parameters())
    loss = loss_of(net(rows()))
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    half = torch.autograd.grad(loss, parameters[:2], retain_graph=True)
    for one, other in zip([*first, *first[:2]], [*second, *half], strict=True):
        assert torch.equal(one, other)


def test_no_more_is_there_than_checkpointing_holds() -> None:
    """Of one block, beside `torch.utils.checkpoint`, which frees what it has handed over, too."""

    def peak(run: Callable[[Tensor], Tensor]) -> int:
        x = rows().repeat(64, 1, 1).requires_grad_()

        def step() -> None:
            run(x).sum().backward()

        step()
        return mn.measure_memory(step).peak_bytes

    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(WIDTH, 512), nn.Tanh(), nn.Linear(512, WIDTH))
    for parameter in block.parameters():
        parameter.grad = torch.zeros_like(parameter)
    converted = mn.convert(nn.Sequential(block, nn.Identity()), rows(), budget="least", gamma=0)
    plain = peak(lambda x: checkpoint(block, x, use_reentrant=False))
    assert peak(converted) <= 1.01 * plain


OUTSIDE: dict[str, Any] = {"gamma": 0, "budget": "least"}


@pytest.mark.parametrize("options", [*WAYS, OUTSIDE], ids=str)
def test_what_hooks_keep_of_a_recompute_holds_nothing_of_it(options: dict[str, Any]) -> None:
    """Outputs of blocks, as for their features: a recompute's has a graph, which held all that it had saved."""
    x = rows().repeat(64, 1, 1)
    peaks = []
    for keeps in (False, True):
        net = mn.convert(nn.Sequential(*(Mlp() for _ in range(8))), x, **options)
        features: dict[nn.Module, Tensor] = {}
        for block in net if keeps else ():
            block.register_forward_hook(lambda block, _, output, kept=features: kept.update({block: output}))

        def step(net: nn.Module = net) -> None:
            net(x).sum().backward()

        step()
        step()
        peaks.append(mn.measure_memory(step).peak_bytes)
    outputs = 2 * 8 * x.nbytes  # those of the step before are there for a while
    assert peaks[1] <= peaks[0] + outputs


@pytest.mark.parametrize("options", [*WAYS, OUTSIDE], ids=str)
def test_a_network_whose_hooks_keep_outputs_goes(options: dict[str, Any]) -> None:
    """The graph of such an output led back to the hook, by a way that Python's garbage collector cannot see."""
    net = mn.convert(chain(Mlp), rows(), **options)
    seen: list[Tensor] = []
    for block in net:
        block.register_forward_hook(lambda block, args, output, seen=seen: seen.append(output))
    for _ in range(3):
        loss_of(net(rows())).backward()
    gone = [weakref.ref(block) for block in net]
    del net, seen, block
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
