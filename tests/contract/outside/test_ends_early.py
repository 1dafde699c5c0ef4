"""What is recomputed from an input that is kept is left when all that its gradient needs has been saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.recompute.values import looks
from tests.contract.ending_early import (
    WIDE,
    WIDTH,
    Checkpointed,
    Head,
    Products,
    Unsteady,
    built,
    products,
    rows,
    step,
    stream,
)
from tests.contract.reference import assert_same, train_step
from tests.models import ResidualMLP
from tests.tally import Tally


def test_the_last_layer_is_not_computed_again() -> None:
    net = built()
    with Products() as counted:
        step(net)
    assert counted.count == 2 + 2
    assert products(net) == 2 + 1
    found, expected = step(net), step(built().module)
    for name, gradient in expected.items():
        assert torch.equal(found[f"module.{name}"], gradient)


def test_in_a_converted_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *[ResidualMLP() for _ in range(3)], nn.Sequential(nn.Linear(WIDTH, WIDE), nn.Tanh(), nn.Linear(WIDE, 4))
    )
    x = torch.randn(32, WIDTH)
    kept, net = (mn.convert(model, x, others=others) for others in ("keep", "checkpoint"))
    for _ in range(2):
        assert_same(train_step(net, (x,)), train_step(kept, (x,)), tolerance=0.0)
    with Products() as with_keep:
        train_step(kept, (x,))
    with Products() as with_checkpoint:
        train_step(net, (x,))
    assert with_checkpoint.count == with_keep.count + 1


def test_twice_through_a_graph_that_is_retained() -> None:
    net = built()
    step(net)
    loss = net(rows()).square().mean()
    once, again = (torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize("of", ["module", "last", "all"])
def test_one_with_a_hook_runs_to_its_end(of: str) -> None:
    net = built()
    seen: list[nn.Module] = []

    def hook(module: nn.Module, *_: Any) -> None:
        seen.append(module)

    if of == "all":
        handle = torch.nn.modules.module.register_module_forward_hook(hook)
    else:
        handle = (net.module if of == "module" else net.module.last).register_forward_hook(hook)
    try:
        assert products(net) == 2 + 2
    finally:
        handle.remove()
    assert seen.count(net.module if of == "module" else net.module.last) == 2 * 2


class Careful(Head):
    """Catches what goes wrong inside of it, and tidies up."""

    tidied: list[str] = []  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except Exception:  # noqa: BLE001
            self.tidied.append("caught")
            return x
        finally:
            self.tidied.append("ended")


def test_no_handler_of_the_modules_own_sees_it() -> None:
    net = built(Careful)
    step(net)
    Careful.tidied.clear()
    expected = step(built())
    for name, gradient in step(net).items():
        assert torch.equal(gradient, expected[name])
    assert Careful.tidied == ["ended"] * 2


class Falling(Head):
    """Has another way for whatever goes wrong in the first."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except:  # noqa: E722
            return self.last(torch.tanh(self.first(2 * x)))


@pytest.mark.parametrize("in_stream", [False, True])
def test_what_a_bare_except_does_instead_is_of_no_account(in_stream: bool) -> None:
    net = stream(Falling) if in_stream else built(Falling)
    expected = step(stream(Falling, backward="stored") if in_stream else built(Falling).module)
    for _ in range(3):
        found = {name.removeprefix("module."): gradient for name, gradient in step(net).items()}
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


class Drawing(Head):
    """Draws a number, and moves a buffer, when nothing is saved any more."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        self.count += torch.rand(())
        return output


def test_generators_and_buffers_are_left_as_without_it() -> None:
    net, plain = built(Drawing), built(Drawing).module
    found = []
    for model in (net, plain):
        step(model)
        step(model)
        found.append(torch.rand(3))
    assert torch.equal(*found)
    assert torch.equal(net.module.count, plain.count)
    assert not torch.is_grad_enabled() or torch.ones(1, requires_grad=True).mul(2).requires_grad


def test_one_value_that_differs_is_seen() -> None:
    assert rows().shape[0] * WIDE > 4 * looks.SAMPLE  # so that a sample leaves values out
    net = built(Unsteady)
    step(net)
    net.module.steady = False
    with pytest.raises(mn.ReconstructionError, match="module 'module' saved other values for backward"):
        step(net)


class Raising(Head):
    def __init__(self) -> None:
        super().__init__()
        self.hiddens: Tally[int] = Tally()

    def hidden(self, x: Tensor) -> Tensor:
        hidden = super().hidden(x)
        self.hiddens.append(1)
        if len(self.hiddens) > 1:
            raise OSError("no longer there")
        return hidden


def test_what_a_recompute_raises_is_told_as_before() -> None:
    with pytest.raises(mn.ReconstructionError, match="raised OSError when it was recomputed"):
        step(built(Raising))


class WithStream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[ResidualMLP() for _ in range(3)])
        self.last = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(x))


def test_a_stream_inside_ends() -> None:
    torch.manual_seed(0)
    model = WithStream()
    converted = mn.convert(model, rows().detach(), gamma=1 / 8)
    expected = step(converted)
    net = Checkpointed(converted)
    for name, gradient in step(net).items():
        torch.testing.assert_close(gradient, expected[name.removeprefix("module.")], rtol=1e-6, atol=1e-8)
    assert products(net) == products(converted) + products(model)  # no pass of the stream is left on its way
