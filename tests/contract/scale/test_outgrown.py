"""Values that outgrow their scale, or are NaN, seen at the end of a pass: it is made over, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from tests.contract.read_counts import (
    Growing,
    blocks,
    reads,
    rows,
    stored_and_reversible,
)
from tests.contract.reference import assert_same, loss_of, relative_error, train_step
from tests.models import ResidualMLP


@pytest.mark.parametrize("gamma", [1 / 8, 0.9])
@pytest.mark.parametrize("factor", [1e3, 1e5, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_pass_that_went_wrong_is_made_over(gamma: float, factor: float, place: int) -> None:
    """Values past the word's headroom, or NaN: seen at the stream's end, with the gradients and buffers of stored."""
    outcomes = []
    for net in stored_and_reversible(5, gamma=gamma):
        train_step(net, (rows(),))
        net.zero_grad(set_to_none=True)
        net.blocks[place].factor = factor
        outcomes.append([train_step(net, (rows(),))])
        net.blocks[place].factor = 1.0
        net.zero_grad(set_to_none=True)
        outcomes[-1].append(train_step(net, (rows(),)))
    for got, expected in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got.output, expected.output, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(got.gradients, expected.gradients, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(got.buffers, expected.buffers, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(got.generator, expected.generator)


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_rows_beside_one_with_nan_keep_their_gradients(place: int, arithmetic: str) -> None:
    class Poisoned(ResidualMLP):
        bad = 1.0

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return torch.cat([y[:1] * self.bad, y[1:]])

    outcomes = []
    for net in stored_and_reversible(5, Poisoned, arithmetic=arithmetic, gamma=0.9):
        net.blocks[place].bad = float("nan")
        outcomes.append(train_step(net, (rows(),), backward=lambda y: y[1:].square().sum().backward()))
    stored, reversible = outcomes
    assert not reversible.output[0].isfinite().any()
    assert reversible.output[1:].isfinite().all()
    tolerance = 0 if arithmetic == "exact" else 1e-5
    torch.testing.assert_close(reversible.gradients, stored.gradients, equal_nan=True, rtol=tolerance, atol=tolerance)


def test_start_past_the_headroom_is_made_over() -> None:
    outcomes = []
    for net in stored_and_reversible(10, gamma=0.9):
        outcomes.append([train_step(net, (factor * rows(),)) for factor in (1.0, 1e4, 1.0, 1e6)])
    for got, expected in zip(outcomes[1], outcomes[0], strict=True):
        assert_same(got, expected, tolerance=0.0)


class WithSide(Growing):
    """Returns what it added beside the stream."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, (y - x).detach()


class Collecting(nn.Module):
    """Keeps the stream between the blocks, and what they return beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([WithSide() for _ in range(4)])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen = []
        for block in self.blocks:
            x, side = block(x)
            seen += [x, side]
        return x, seen


def test_what_the_parent_kept_of_a_pass_that_is_made_over_is_put_right() -> None:
    torch.manual_seed(0)
    model, collected = Collecting(), []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, rows(), gamma=0.9, backward=backward)
        net.blocks[1].factor = 1e6
        collected.append([tensor.detach().clone() for tensor in net(rows())[1]])
    assert collected[0][2].abs().max() > 1e4
    assert all(map(torch.equal, *collected))


class Keeping(torch.autograd.Function):
    """Multiplies, and keeps the factor where nobody can fill it in anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class WithFunction(Growing):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * Keeping.apply(self.inner(x), x.detach().abs().mean())


class ReadingValues(Growing):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.inner(x) / float(x.detach().abs().mean())


class KeepingElsewhere(Growing):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return x + self.factor * self.inner(x)


class CheckpointedInside(Growing):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("kind", [WithFunction, ReadingValues, KeepingElsewhere, CheckpointedInside])
def test_a_graph_that_may_hold_wrong_numbers_is_refused_and_the_next_pass_is_right(kind: type[nn.Module]) -> None:
    outcomes = []
    for net in stored_and_reversible(5, kind):
        train_step(net, (rows(),))
        net.blocks[1].factor = 1e5
        net.zero_grad(set_to_none=True)
        if not outcomes:
            train_step(net, (rows(),))
            net.zero_grad(set_to_none=True)
        else:
            with pytest.raises(mn.StateRangeError, match="run this step again"):
                net(rows())
        outcomes.append(train_step(net, (rows(),)))
    # The scales differ, and saturated branches feel it: against float64, one is as near as the other.
    exact = mn.convert(blocks(5, kind).double(), rows().double(), arithmetic="float", backward="stored")
    exact.blocks[1].factor = 1e5
    expected = train_step(exact, (rows().double(),))
    assert relative_error(outcomes[1], expected) <= 2 * relative_error(outcomes[0], expected) + 1e-4


@pytest.mark.parametrize("place", [1, 3])
def test_a_pass_without_its_last_block_that_went_wrong_raises_in_backward(place: int) -> None:
    _, net = stored_and_reversible(4)
    train_step(net, (rows(),))
    net.blocks[place - 1].factor = 1e6
    last, net.blocks = net.blocks[3], net.blocks[:3]
    loss = loss_of(net(rows()))
    with pytest.raises(mn.StateRangeError, match="left before its last block"):
        loss.backward()
    loss_of(net(rows())).backward()  # with care now
    net.blocks.append(last)


def test_a_widened_scale_is_taken_from_the_start_in_later_passes() -> None:
    """A stream that always grows past its first scale is made over once, then it is known where.

    The pass behind looks how far its values lie apart now.
    """
    _, net = stored_and_reversible(10, gamma=0.9)
    for block in net.blocks:
        block.factor = 30.0
    with reads() as counts:
        loss_of(net(rows())).backward()
    assert counts.total() > 2
    loss_of(net(rows())).backward()
    for _ in range(2):
        with reads() as counts:
            loss_of(net(rows())).backward()
        assert counts.total() == 2
