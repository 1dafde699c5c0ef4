"""Contract line 8: every use of autograd."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.rewind.tape import Tape
from tests.contract.parents import Looped, converted
from tests.contract.reference import assert_same, loss_of, pair, relative_error, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP


def test_autograd_grad(case: Case) -> None:
    gradients = []
    for net in pair(case):
        torch.manual_seed(3)
        loss = loss_of(net(*case.example()))
        gradients.append(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True))
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_accumulation_over_two_steps(case: Case, coupled: dict[str, Any]) -> None:
    outcomes = []
    for net in pair(case, **coupled):
        train_step(net, case.example(), seed=1)
        outcomes.append(train_step(net, case.example(), seed=2))
    assert_same(outcomes[1], outcomes[0])


@pytest.mark.parametrize("first_is_first", [True, False])
def test_two_forwards_before_one_backward(case: Case, coupled: dict[str, Any], first_is_first: bool) -> None:
    outcomes = []
    for net in pair(case, **coupled):
        torch.manual_seed(1)
        one = loss_of(net(*case.example()))

        def backward(output: Tensor, one: Tensor = one) -> None:
            two = loss_of(output)
            if first_is_first:
                one.backward()
                two.backward()
            else:
                (two + 2 * one).backward()

        outcomes.append(train_step(net, case.example(), backward=backward))
    assert_same(outcomes[1], outcomes[0])


def test_retain_graph_and_second_backward(case: Case) -> None:
    def backward(output: Tensor) -> None:
        loss = loss_of(output)
        loss.backward(retain_graph=True)
        (3 * loss).backward(retain_graph=True)
        loss.backward()

    outcomes = [train_step(net, case.example(), backward=backward) for net in pair(case)]
    assert_same(outcomes[1], outcomes[0])


def test_second_backward_without_retain_graph_is_refused(case: Case) -> None:
    _, net = pair(case)
    loss = loss_of(net(*case.example()))
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_create_graph_gives_second_derivatives(case: Case, coupled: dict[str, Any]) -> None:
    outcomes = []
    for net in pair(case, **coupled):
        parameters = [p for p in net.parameters() if p.requires_grad]

        def backward(output: Tensor, parameters: list[nn.Parameter] = parameters) -> None:
            first = torch.autograd.grad(loss_of(output), parameters, create_graph=True, allow_unused=True)
            sum(g.square().sum() for g in first if g is not None).backward()

        outcomes.append(train_step(net, case.example(), backward=backward))
    assert_same(outcomes[1], outcomes[0])


def test_second_derivatives_against_the_rule_in_float64() -> None:
    """An independent reference: the rule written out, differentiated twice by ordinary autograd."""
    torch.manual_seed(0)
    chain, gamma = Chain([ResidualMLP() for _ in range(3)]).double(), 0.5
    net = mn.convert(chain, streams=["blocks"], gamma=gamma)
    x = torch.randn(5, WIDTH, dtype=torch.float64)

    def rule(x: Tensor) -> Tensor:
        x = chain.stem(x)
        v = torch.zeros_like(x)
        for block in chain.blocks:
            v = gamma * v + (1 - gamma) * block.inner(x)
            x = x + v
        return chain.head(x + gamma / (1 - gamma) * v)

    products = []
    for run, owner in ((rule, chain), (net, net)):
        parameters = list(owner.parameters())
        torch.manual_seed(1)
        directions = [torch.randn_like(p) for p in parameters]
        first = torch.autograd.grad(run(x).square().mean(), parameters, create_graph=True)
        products.append(torch.autograd.grad(first, parameters, directions))
    for expected, got in zip(*products, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_gradcheck_of_the_whole_stream() -> None:
    torch.manual_seed(0)
    net = mn.convert(nn.Sequential(ResidualMLP(4), ResidualMLP(4)), streams=[""], gamma=0.5).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,))
    assert torch.autograd.gradgradcheck(net, (x,))


class Tapped(nn.Module):
    """Returns every stream value."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ResidualMLP() for _ in range(5)])

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        return taps


@pytest.mark.parametrize("taps", [[1], [1, 4], [0, 2, 4], [3, 1]])
@pytest.mark.parametrize("separately", [False, True])
def test_loss_on_intermediate_stream_values(taps: list[int], separately: bool) -> None:
    torch.manual_seed(0)
    model, x = Tapped(), torch.randn(5, WIDTH)
    gradients = []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, x, backward=backward)
        values = net(x)
        losses = [loss_of(values[tap]) for tap in taps]
        if separately:
            for loss in losses:
                loss.backward(retain_graph=True)
        else:
            sum(losses).backward()
        gradients.append([p.grad for p in net.parameters()])
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert torch.equal(got, expected)


def test_gradient_inside_forward_and_on_with_the_stream() -> None:
    """A gradient taken half way rewinds the tape; the next block has to find its end again."""

    class Guided(Tapped):
        def forward(self, x: Tensor) -> Tensor:
            for index, block in enumerate(self.blocks):
                x = block(x)
                if index == 2 and self.guide:
                    (self.gradient,) = torch.autograd.grad(x.sum(), self.blocks[1].inner[0].weight, retain_graph=True)
            return x

    torch.manual_seed(0)
    model, x = Guided(), torch.randn(5, WIDTH)
    model.guide = False
    outcomes, inner = [], []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, x, backward=backward)
        net.guide = True
        outcomes.append(train_step(net, (x,)))
        inner.append(net.gradient)
    assert_same(outcomes[1], outcomes[0])
    assert torch.equal(*inner)


def test_gradients_switched_on_and_off_along_the_stream() -> None:
    class Switching(Tapped):
        def forward(self, x: Tensor) -> Tensor:
            for index, block in enumerate(self.blocks):
                with torch.set_grad_enabled(index not in self.off):
                    x = block(x)
            return x

    torch.manual_seed(0)
    model, x = Switching(), torch.randn(5, WIDTH)
    model.off = ()
    for off in ((0, 1), (0,)):
        outcomes = []
        for backward in ("stored", "reversible"):
            net = mn.convert(model, x, backward=backward)
            net.off = off
            outcomes.append(train_step(net, (x,)))
        assert_same(outcomes[1], outcomes[0])


def test_nothing_is_held_after_backward_or_after_the_graph_dies(case: Case) -> None:
    _, net = pair(case)
    tapes: list[weakref.ref[Tape]] = []
    original = Tape.__init__

    def remember(tape: Tape, *args: object, **kwargs: object) -> None:
        original(tape, *args, **kwargs)
        tapes.append(weakref.ref(tape))

    gc.collect()
    gc.disable()  # a cycle would keep the activations until the collector comes by
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tape, "__init__", remember)
            output = net(*case.example())
            loss_of(output).backward()
            assert [tape() for tape in tapes] == [None]
            output = net(*case.example())
            assert tapes[-1]() is not None
            del output
            assert tapes[-1]() is None
    finally:
        gc.enable()


def test_position_bias_made_by_the_first_block_leaves_no_cycle() -> None:
    """T5's pattern: block 0 makes a tensor with a graph that every later block takes."""

    class Biased(ResidualMLP):
        def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
            bias = self.inner(x) if bias is None else bias
            return x + self.inner(x + bias), bias

    class T5Like(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Biased() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            bias = None
            for block in self.blocks:
                x, bias = block(x, bias)
            return x

    torch.manual_seed(0)
    model, x = T5Like(), torch.randn(5, WIDTH)
    outcomes = [train_step(mn.convert(model, x, backward=b), (x,)) for b in ("stored", "reversible")]
    assert relative_error(outcomes[1], outcomes[0]) <= 1e-6
    net = mn.convert(model, x)
    gc.collect()
    gc.disable()
    try:
        tapes: list[weakref.ref[Tape]] = []
        original = Tape.__init__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tape, "__init__", lambda t, *a, **k: (original(t, *a, **k), tapes.append(weakref.ref(t)))[0])
            output = net(x)
        assert tapes[0]() is not None
        del output
        assert tapes[0]() is None
    finally:
        gc.enable()


def test_parameter_stepped_between_two_backwards_through_one_block() -> None:
    """Those of the last recompute have been used, so it is made again, and sees the parameter that has changed."""

    def run(parent: Looped, x: Tensor) -> Tensor:
        return parent.blocks[0](x)

    net = converted(Looped(run))
    loss = net(torch.randn(5, WIDTH)).square().sum()
    loss.backward(retain_graph=True)
    with torch.no_grad():
        net.blocks[0].inner[2].weight.mul_(2)
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.0.*'weight' was changed between"):
        loss.backward()
