"""What is recomputed from an input that is kept is left when all that its gradient needs has been saved."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import momentumnet as mn
from momentumnet.core.checkpoint import Checkpoint
from momentumnet.recompute import looks
from tests.contract.reference import assert_same, train_step
from tests.models import ResidualMLP
from tests.tally import Tally

WIDTH = 16
WIDE = 64


class Products(TorchDispatchMode):
    """Counts the products of layers that are computed: a layer has saved what it needs before."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


class Head(nn.Module):
    """Two layers, of which the last one's result is not needed for its own gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDE), nn.Linear(WIDE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(x)))

    def hidden(self, x: Tensor) -> Tensor:
        return self.first(x)


class Checkpointed(nn.Module):
    """The module, recomputed in backward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self._checkpoint = module, Checkpoint()

    def forward(self, x: Tensor) -> Any:
        return self._checkpoint.call("module", self.module, self.module, (x,), {})


def rows() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(32, WIDTH, requires_grad=True)


def step(net: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(2)
    net.zero_grad()
    net(rows()).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


def built(module: type[nn.Module] = Head) -> nn.Module:
    torch.manual_seed(0)
    return Checkpointed(module())


def products(net: nn.Module) -> int:
    """In a second training step: the first recompute runs to its end, and shows whether others have to."""
    step(net)
    with Products() as counted:
        step(net)
    return counted.count


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


class Unsteady(Head):
    """One hidden value is another one each time: not one that a sample of them would show."""

    place, steady = 1, True

    def hidden(self, x: Tensor) -> Tensor:
        hidden = super().hidden(x)
        mark = torch.zeros_like(hidden)
        mark.view(-1)[self.place] = 0.0 if self.steady else float(torch.rand((), generator=self.own))
        return hidden + mark

    own = torch.Generator().manual_seed(0)


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


class Residual(nn.Module):
    """A block of the stream."""

    def __init__(self, branch: type[nn.Module] = Head) -> None:
        super().__init__()
        self.branch = branch()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def stream(branch: type[nn.Module] = Head, *, backward: str = "checkpointed") -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(Residual(), Residual(branch), Residual())
    return mn.convert(net, rows().detach(), gamma=0.5, backward=backward)


def test_blocks_of_a_stream_that_keeps_their_inputs_end_early() -> None:
    """Those of a stream that is rewound do not: their output leads back to their input."""
    net = stream()
    step(net)
    found, expected = step(net), step(stream(backward="stored"))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    forward = products(stream(backward="stored"))
    assert products(stream()) == forward + 3
    assert products(stream(backward="reversible")) == forward + 6


def test_a_block_with_a_hook_runs_to_its_end() -> None:
    net = stream()
    seen: list[nn.Module] = []
    net[1].branch.last.register_forward_hook(lambda module, *_: seen.append(module))
    assert products(net) == 6 + 3 + 1
    assert len(seen) == 2 * 2


def test_one_value_of_a_block_that_differs_is_seen() -> None:
    net = stream(Unsteady)
    step(net)
    net[1].branch.steady = False
    with pytest.raises(mn.ReconstructionError, match=r"block '1' of .* saved other values for backward"):
        step(net)


class Aside(Residual):
    """Returns something beside the stream, which is computed when nothing of the stream is saved any more."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, y.mean(-1).exp()


class Asides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Aside() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        beside = torch.zeros(())
        for block in self.blocks:
            x, own = block(x)
            beside = beside + own.sum()
        return x * beside


def test_what_blocks_return_beside_the_stream_has_its_gradient() -> None:
    torch.manual_seed(0)
    model = Asides()
    nets = [mn.convert(model, rows().detach(), gamma=0.5, backward=way) for way in ("checkpointed", "stored")]
    found, expected = map(step, nets)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_pass_that_outgrows_its_scale_or_meets_nan() -> None:
    for factor in (1e4, float("nan")):
        nets = [stream(backward=way) for way in ("checkpointed", "stored")]
        for net in nets:
            step(net)
            with torch.no_grad():
                net[0].branch.last.bias.mul_(0).add_(factor)
        found, expected = map(step, nets)
        assert all(torch.equal(found[name].isnan(), value.isnan()) for name, value in expected.items())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, equal_nan=True)


class Rounding(Head):
    """Multiplies by rounded weights, and puts its own back when it has done so."""

    def forward(self, x: Tensor) -> Tensor:
        own = self.last.weight.data
        self.last.weight.data = (8 * own).round() / 8
        y = super().forward(x)
        self.last.weight.data = own
        return y


class Scaling(Head):
    """The same in place."""

    def forward(self, x: Tensor) -> Tensor:
        self.last.weight.data.mul_(2)
        y = super().forward(x)
        self.last.weight.data.div_(2)
        return y


class Wide(Head):
    """Computes in float64 unless it is told otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        y = super().forward(x)
        torch.set_default_dtype(torch.float32)
        return y


class RoundingLater(Head):
    """Rounds from its third call on (training for few bits that begins with a delay)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        own = self.last.weight.data
        if self.calls > 2:
            self.last.weight.data = (8 * own).round() / 8
        y = super().forward(x)
        self.last.weight.data = own
        return y


class Freezing(Head):
    """A layer takes no gradient while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.last.requires_grad_(False)
        y = super().forward(x)
        self.last.requires_grad_(True)
        return y


class Hooking(Head):
    """Hooks a layer while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        handle = self.last.register_forward_hook(lambda module, args, output: 1.5 * output)
        y = super().forward(x)
        handle.remove()
        return y


class Exchanging(Head):
    """Has another layer in the place of its own while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.other = copy.deepcopy(self.last)

    def forward(self, x: Tensor) -> Tensor:
        own, self.last = self.last, self.other
        y = super().forward(x)
        self.last = own
        return y


class Branches(Head):
    """A number that Python draws is in one branch, of which the other ones know nothing."""

    steady = True

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) if self.steady else random.random() * super().forward(x)
        for layer in self.layers:
            y = y + torch.tanh(layer(x))
        return y


RIGHT_AT_THE_END = [Rounding, Scaling, Wide, RoundingLater, Freezing, Hooking, Exchanging]


@pytest.mark.parametrize("kind", RIGHT_AT_THE_END)
@pytest.mark.parametrize("place", ["module", "block"])
def test_what_a_module_puts_right_at_its_end_is_put_right(kind: type[nn.Module], place: str) -> None:
    net = built(kind) if place == "module" else stream(kind)
    expected = built(kind).module if place == "module" else stream(kind, backward="stored")
    for _ in range(4):
        found = {name.removeprefix("module."): gradient for name, gradient in step(net).items()}
        assert all(torch.equal(found[name], gradient) for name, gradient in step(expected).items())
    for parameter, other in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert parameter.requires_grad == other.requires_grad
    assert not any(module._forward_hooks for module in net.modules() if isinstance(module, nn.Linear))
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("place", ["module", "block"])
def test_a_branch_that_differs_is_seen(place: str) -> None:
    net = built(Branches) if place == "module" else stream(Branches)
    step(net)
    (net.module if place == "module" else net[1].branch).steady = False
    with pytest.raises(mn.ReconstructionError, match="did not compute the same"):
        step(net)


class Path(nn.Module):
    """In one chain, or with one layer beside the others by a number that Python draws: as many saved tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.in_a_chain = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)), True

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        beside = torch.tanh(first(x) if self.in_a_chain else random.random() * first(x))
        x = beside if self.in_a_chain else x
        for layer in others:
            x = torch.tanh(layer(x))
        return x if self.in_a_chain else x + beside


@pytest.mark.parametrize("place", ["module", "block"])
def test_another_path_that_saves_as_much_is_looked_at_by_itself(place: str) -> None:
    net = built(Path) if place == "module" else stream(Path)
    for _ in range(2):
        step(net)
    (net.module if place == "module" else net[1].branch).in_a_chain = False
    with pytest.raises(mn.ReconstructionError, match="did not compute the same"):
        step(net)


def test_a_forward_of_the_modules_own_runs_to_its_end() -> None:
    net = built()
    plain, ended = net.module.forward, []

    def forward(x: Tensor) -> Tensor:
        y = plain(x)
        ended.append(1)
        return y

    net.module.forward = forward
    assert products(net) == 2 + 2
    assert len(ended) == 2 * 2


def moved_away(layer: nn.Linear, way: str) -> None:
    """Its weight, of which the gradient of what came before is made, is another one."""
    if way == "data":
        layer.weight.data = 2 * layer.weight.data
    else:
        layer.weight = nn.Parameter(2 * layer.weight.detach())


@pytest.mark.parametrize("way", ["data", "another parameter"])
@pytest.mark.parametrize("in_stream", [False, True])
def test_a_parameter_that_was_replaced_between_forward_and_backward_is_seen(way: str, in_stream: bool) -> None:
    """No output is compared, and what the forward was given is not kept: the last product's weight would be taken."""
    net = stream() if in_stream else built()
    layer = net[1].branch.last if in_stream else net.module.last
    for _ in range(2):
        step(net)
    loss = net(rows()).square().mean()
    moved_away(layer, way)
    with pytest.raises(mn.ReconstructionError, match=r"'(branch\.)?last\.weight' was replaced between forward and"):
        loss.backward()
    step(net)  # goes on with the new one
