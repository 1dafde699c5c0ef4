"""The values that autograd saves are compared, too: an index or a mask can be wrong where no output is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.chains import nets, rows
from tests.contract.reference import assert_same, loss_of, train_step
from tests.models import WIDTH, ResidualMLP
from tests.tally import Tally


class Counting(ResidualMLP):
    """Keeps a counter that nobody puts back; what it computes is the same for any count, but not its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Tally([0])

    def forward(self, x: Tensor) -> Tensor:
        self.counts[0] += 1
        return x + self.branch(self.inner(x), self.counts[0])

    def branch(self, f: Tensor, count: int) -> Tensor:
        raise NotImplementedError


class WrittenByIndex(Counting):
    """Reads the first row of a table that it writes at its next place, as a cache of fixed size does."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tally[Tensor] = Tally()

    def branch(self, f: Tensor, count: int) -> Tensor:
        table = self.table.pop() if count % 2 == 0 else torch.zeros(4, *f.shape)
        table = table.index_copy(0, self.index((count - 1) % 2), f[None])
        self.table.clear()
        self.table.append(table.detach())  # to the same object: another one would be put back
        return table[0]

    def index(self, place: int) -> Tensor:
        return torch.tensor([place])


class WrittenByLongIndex(WrittenByIndex):
    """The index is longer than what is looked at together with others."""

    def branch(self, f: Tensor, count: int) -> Tensor:
        places = torch.arange(70_000) % f.shape[0]
        row = torch.zeros_like(places) + (count - 1) % 2
        return f + 0 * f[places].gather(1, row[:, None]).sum()


class WrittenByList(Counting):
    """The index is a list, which nobody but the operation sees as a tensor."""

    def branch(self, f: Tensor, count: int) -> Tensor:
        return f + 0 * f[[count % 2]].sum()


class Masked(Counting):
    """A mask that leaves the value alone: zeros stand where it differs."""

    def branch(self, f: Tensor, count: int) -> Tensor:
        mask = torch.ones(f.shape, dtype=torch.bool)
        mask[:, 0] = count % 2 == 0
        return f + (0 * f).where(mask, torch.zeros(()))


class Scaled(Counting):
    """A factor without a gradient in front of a gate that is zero yet."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def branch(self, f: Tensor, count: int) -> Tensor:
        return self.gate * (f * torch.full((WIDTH,), float(count)))


class AddedTo(Scaled):
    """Adds noise of its own in front of the gate: only floats with a gradient differ."""

    def branch(self, f: Tensor, count: int) -> Tensor:
        return self.gate * (f + count).tanh()


class KeepsInts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, count: Tensor) -> Tensor:
        ctx.save_for_backward(count)
        return f.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


class InFunction(Counting):
    def branch(self, f: Tensor, count: int) -> Tensor:
        return KeepsInts.apply(f, torch.tensor([count]))


class OtherBuffer(Counting):
    """Takes its index from one buffer, then from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("even", torch.zeros(5, 1, dtype=torch.long))
        self.register_buffer("odd", torch.ones(5, 1, dtype=torch.long))

    def branch(self, f: Tensor, count: int) -> Tensor:
        return f + 0 * f.gather(1, self.odd if count % 2 else self.even)


class OtherRow(Counting):
    """Takes its index from one row of a buffer, then from another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.arange(10).reshape(2, 5, 1))

    def branch(self, f: Tensor, count: int) -> Tensor:
        return f + 0 * f.gather(1, self.rows[count % 2])


KINDS = [
    WrittenByIndex,
    WrittenByLongIndex,
    WrittenByList,
    Masked,
    Scaled,
    AddedTo,
    InFunction,
    OtherBuffer,
    OtherRow,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_value_that_differs_is_refused(kind: type[nn.Module]) -> None:
    stored, reversible = nets(kind)
    loss_of(stored(rows())).backward()
    with pytest.raises(mn.ReconstructionError, match=r"block 'blocks\.\d' of stream 'blocks' saved"):
        loss_of(reversible(rows())).backward()


@pytest.mark.parametrize("kind", [WrittenByIndex, Masked, InFunction, OtherBuffer])
def test_the_same_for_modules_outside_the_streams(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(), nn.Sequential(ResidualMLP(), ResidualMLP()))
    net = mn.convert(model, rows(), streams=["1"], others="checkpoint")
    with pytest.raises(mn.ReconstructionError, match="module '0' saved"):
        loss_of(net(rows())).backward()


def test_index_differs_under_the_float_rule() -> None:
    _, net = nets(WrittenByIndex, arithmetic="float", gamma=0.9)
    with pytest.raises(mn.ReconstructionError, match="saved other values"):
        loss_of(net(rows())).backward()


def test_a_pass_that_is_played_again_renews_what_is_compared() -> None:
    class Pooling(ResidualMLP):
        """Saves indices and masks that depend on the stream, and floats without a gradient."""

        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            f = self.inner(x)
            largest = f.max(-1, keepdim=True).indices
            mask = (f > f.mean()).float()
            return x + self.factor * (f.gather(-1, largest) + f * mask + F.max_pool1d(f, 3, 1, 1))

    outcomes = []
    for net in nets(Pooling):
        train_step(net, (rows(),))
        net.zero_grad(set_to_none=True)
        net.blocks[0].factor = 1e4
        outcomes.append(train_step(net, (rows(),)))
    assert_same(outcomes[1], outcomes[0], tolerance=0.0)


class InTurns(Counting):
    """Multiplies by two parameters of the same values in turns, so that nothing but their names tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.ones(WIDTH)) for _ in range(2))

    def branch(self, f: Tensor, count: int) -> Tensor:
        return f * (self.first if count % 2 else self.second)


def test_another_parameter_of_the_same_values_is_refused() -> None:
    _, net = nets(InTurns)
    with pytest.raises(
        mn.ReconstructionError,
        match="saved parameter 'first' of its module 0 from its element 0 on in forward and parameter 'second' of its "
        "module 0 from its element 0 on when it was recomputed",
    ):
        train_step(net, (rows(),))
