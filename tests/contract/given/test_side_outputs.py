"""What a block returns beside the stream is compared when it is recomputed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, ResidualMLP
from tests.tally import Tally


def rows() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


def noisy(loss: Tensor) -> Tensor:
    """Drawn from a generator that nobody puts back; the stream does not feel it."""
    return loss * (1 + torch.rand((), generator=OWN))


OWN = torch.Generator()
PACKED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda y, aux: (y, aux),
    "list": lambda y, aux: [y, aux],
    "mapping": lambda y, aux: {"y": y, "aux": aux},
    "nested": lambda y, aux: (y, None, 3, {"losses": [aux, aux]}),
    "ordered": lambda y, aux: OrderedDict(y=y, aux=aux),
    "beside the stream": lambda y, aux: (y, y, aux, y.view(-1)),
}


def losses(output: Any) -> Tensor:
    leaves = torch.utils._pytree.tree_leaves(output)
    return sum(leaf for leaf in leaves[1:] if isinstance(leaf, Tensor) and leaf.dim() == 0)


class Side(ResidualMLP):
    """Returns a loss of its own beside the stream."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any], change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, WIDTH)
        self.pack, self.change = pack, change

    def forward(self, x: Tensor) -> Any:
        return self.pack(super().forward(x), self.change(self.router(x).square().mean()))


class Net(nn.Module):
    def __init__(self, pack: Callable[[Tensor, Tensor], Any], change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Side(pack, change) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for block in self.blocks:
            output = block(x)
            x = torch.utils._pytree.tree_leaves(output)[0]
            total = total + losses(output)
        return x + total


def nets(pack: str, change: Callable[[Tensor], Tensor], **options: Any) -> list[nn.Module]:
    torch.manual_seed(0)
    model = Net(PACKED[pack], change)
    return [
        mn.convert(model, streams=["blocks"], backward=backward, **options) for backward in ("stored", "reversible")
    ]


@pytest.mark.parametrize("pack", PACKED)
def test_another_side_output_is_refused(pack: str) -> None:
    _, net = nets(pack, noisy)
    with pytest.raises(mn.ReconstructionError, match=r"block 'blocks\.\d' of stream 'blocks' returned something else"):
        net(rows()).square().mean().backward()


@pytest.mark.parametrize("pack", PACKED)
def test_the_same_side_output_has_its_gradient(pack: str) -> None:
    stored, reversible = nets(pack, lambda loss: loss)
    assert_same(train_step(reversible, (rows(),)), train_step(stored, (rows(),)), tolerance=1e-6)


def test_side_output_under_the_float_rule() -> None:
    stored, reversible = nets("tuple", lambda loss: loss, arithmetic="float", gamma=0.9)
    assert_same(train_step(reversible, (rows(),)), train_step(stored, (rows(),)), tolerance=1e-4)
    _, net = nets("tuple", noisy, arithmetic="float", gamma=0.9)
    with pytest.raises(mn.ReconstructionError, match="returned something else"):
        net(rows()).square().mean().backward()


def test_a_side_output_without_gradient_may_be_another_one() -> None:
    """A counter, a time: no gradient hangs on it."""
    stored, reversible = nets("tuple", lambda loss: noisy(loss.detach()))
    outcomes = []
    for net in (stored, reversible):
        OWN.manual_seed(3)
        outcomes.append(train_step(net, (rows(),)))
    assert_same(outcomes[1], outcomes[0], tolerance=1e-6)


def test_blocks_that_keep_their_activations_compute_nothing_again() -> None:
    torch.manual_seed(0)
    net = mn.convert(Net(PACKED["tuple"], noisy), rows(), spare=1 << 30)
    net(rows()).square().mean().backward()


def test_side_outputs_of_a_pass_that_is_played_again() -> None:
    outcomes = []
    for net in nets("tuple", lambda loss: loss):
        train_step(net, (rows(),))
        net.zero_grad(set_to_none=True)
        with torch.no_grad():
            net.blocks[0].inner[2].weight.mul_(1e4)
        outcomes.append(train_step(net, (rows(),), backward=lambda y: y.mean().backward()))
    for name, grad in outcomes[0].gradients.items():
        if "router" in name:  # the total itself was summed by the parent from what it was handed out first
            torch.testing.assert_close(outcomes[1].gradients[name], grad)


class Aux(ResidualMLP):
    """Leaves its loss on an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.aux = self.router(x).tanh().square().sum()
        return super().forward(x)


class AuxInAList(Aux):
    """Leaves it in a list that is the same one in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept[:] = [self.router(x).tanh().square().sum()]
        return ResidualMLP.forward(self, x)

    @property
    def aux(self) -> Tensor:
        return self.kept[0]


class AuxInANewList(Aux):
    """A new list in each call."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [self.router(x).tanh().square().sum()]
        return ResidualMLP.forward(self, x)

    @property
    def aux(self) -> Tensor:
        return self.kept[0]


@pytest.mark.parametrize("kind", ["attribute", "list", "same list"])
def test_a_tensor_on_an_attribute_after_a_recompute(kind: str) -> None:
    """The attribute holds what the forward has left there, whatever has been recomputed since."""
    torch.manual_seed(0)
    block = {"attribute": Aux, "list": AuxInANewList, "same list": AuxInAList}[kind]
    model, gradients = nn.Sequential(*[block() for _ in range(3)]), []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, rows(), backward=backward)
        net(rows()).sum().backward(retain_graph=True)
        sum(block.aux for block in net).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_tensor_in_a_list_after_a_recompute_is_named_as_such() -> None:
    torch.manual_seed(0)
    net = mn.convert(nn.Sequential(*[AuxInAList() for _ in range(3)]), rows())
    for block in net:
        block.kept = Tally(block.kept)  # a list that nobody puts back
    net(rows()).sum().backward(retain_graph=True)
    with pytest.raises(mn.ReconstructionError, match=r"block '\d'.*a list.*return x, aux.*backward='stored'"):
        sum(block.aux for block in net).backward()


def test_a_tensor_on_an_attribute_in_the_first_backward() -> None:
    torch.manual_seed(0)
    model, gradients = nn.Sequential(*[Aux() for _ in range(3)]), []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, rows(), backward=backward)
        (net(rows()).sum() + sum(block.aux for block in net)).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
