"""Forward and backward read nothing from the device for a block; what was not looked at in time is made over."""

from __future__ import annotations

import collections
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from momentumnet.core import audit
from momentumnet.core.exact_state import ExactState
from tests.contract.reference import assert_same, loss_of, relative_error, train_step
from tests.contract.unequal_blocks import Undetermined
from tests.models import WIDTH, Case, Chain, ResidualMLP
from tests.tally import Tally

READING = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
READING_OPERATORS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero"}


@contextmanager
def reads() -> Iterator[collections.Counter[str]]:
    """How often a tensor's values are read by Python, by name."""
    counts: collections.Counter[str] = collections.Counter()

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counts[func._schema.name] += func._schema.name in READING_OPERATORS
            return func(*args, **(kwargs or {}))

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return method(tensor, *args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch, Operators():
        for name in READING:
            patch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
        yield counts


def blocks(depth: int, kind: type[nn.Module] = ResidualMLP) -> nn.Module:
    torch.manual_seed(0)
    return Chain([kind() for _ in range(depth)])


def rows() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


class Dropping(ResidualMLP):
    """Draws from the generator, and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.inner.append(nn.BatchNorm1d(WIDTH))
        self.inner.append(nn.Dropout(0.2))


@pytest.mark.parametrize("kind", [ResidualMLP, Dropping])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 0.9},
        {"others": "checkpoint"},
        {"arithmetic": "float", "gamma": 0.9},
        {"dtype": torch.float64},
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_no_read_a_block(kind: type[nn.Module], options: dict[str, Any]) -> None:
    """As many reads for 4 blocks as for 12, in the first pass and in later ones: one in forward, one in backward."""
    dtype = options.pop("dtype", torch.float32) if "dtype" in options else torch.float32
    for depth in (4, 12):
        net = mn.convert(blocks(depth, kind).to(dtype), rows().to(dtype), **options)
        for _ in range(3):
            with reads() as counts:
                loss_of(net(rows().to(dtype))).backward()
            assert counts.total() - counts["aten::equal"] <= 2, counts  # norms are tried out once, in a first pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for a device: needs a GPU")
@pytest.mark.parametrize("budget", [None, "least"])
def test_a_step_passes_pytorchs_check_for_waits(budget: str | None) -> None:
    """What is read goes to pinned memory behind an event of its own, for which nobody else has to wait."""
    net = mn.convert(blocks(6, Dropping).cuda(), rows().cuda(), others="checkpoint", budget=budget)
    loss_of(net(rows().cuda())).backward()  # tries out the norms
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_of(net(rows().cuda())).backward()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_reads_of_further_streams_and_of_other_backwards() -> None:
    net = mn.convert(nn.Sequential(blocks(3), nn.Linear(4, WIDTH), blocks(5)), rows())
    with reads() as counts:
        output = net(rows())
    assert counts.total() == 2
    loss = loss_of(output)
    with reads() as counts:
        loss.backward(retain_graph=True)
    assert counts.total() == 1
    with reads() as counts:
        loss.backward()
    assert counts.total() == 1


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
def test_forward_and_backward_of_fake_tensors(case: Case, others: str) -> None:
    """There are no values that could be read; sizes come out as they are."""
    net = mn.convert(case.model(), case.example(), others=others)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = [mode.from_tensor(value) if isinstance(value, Tensor) else value for value in case.example()]
        loss_of(net(*given)).backward()
    for parameter in net.parameters():
        assert parameter.grad is None or isinstance(parameter.grad, FakeTensor)
        assert parameter.grad is None or parameter.grad.shape == parameter.shape


class Growing(ResidualMLP):
    """Its branch is multiplied by an attribute; counts nothing else than its norm does."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.norm(self.inner(x))


def stored_and_reversible(depth: int, kind: type[nn.Module] = Growing, **options: Any) -> tuple[nn.Module, nn.Module]:
    model = blocks(depth, kind)
    return tuple(mn.convert(model, rows(), backward=b, **options) for b in ("stored", "reversible"))  # type: ignore[return-value]


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


def test_what_a_replayed_graph_cannot_read_is_told_by_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are there but cannot be read: nothing is raised on the way, `check_replays` raises once."""
    mn.check_replays()
    net, wrong = mn.convert(blocks(4), rows()), undetermined(2)
    expected = train_step(net, (rows(),))
    net.zero_grad(set_to_none=True)
    wrong(rows())  # a first pass without example inputs is looked at, so it has to come before
    for module in ("audit", "watch", "integer_state", "spread", "scale", "tape", "late_check"):
        monkeypatch.setattr(f"momentumnet.core.{module}.has_values", lambda tensor: False)
    rests = packed_bytes(monkeypatch)
    with reads() as counts:
        got = train_step(net, (rows(),))
    assert counts.total() == 0
    assert_same(got, expected, tolerance=0.0)
    assert len(rests) == 1
    assert 0 < rests[0] < 9  # as the pass before tells; in motion 12
    mn.check_replays()
    train_step(wrong, (rows(),))
    with pytest.raises(mn.ReconstructionError, match="replayed graph on cpu"):
        mn.check_replays()
    mn.check_replays()
    with torch.no_grad():
        net.blocks[1].inner[2].weight.mul_(1e12)
    assert train_step(net, (rows(),)).output.isnan().all()
    with pytest.raises(mn.ReconstructionError, match="outgrew"):
        mn.check_replays()


def packed_bytes(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Of each state that goes to rest, the bytes an element."""
    found: list[float | None] = []
    pack = ExactState.pack

    def packed(state: ExactState, extremes: Any = None) -> None:
        pack(state, extremes)
        found.append(state.packed_bytes)

    monkeypatch.setattr(ExactState, "pack", packed)
    return found


def undetermined(place: int, depth: int = 4) -> nn.Module:
    torch.manual_seed(0)
    chain = Chain([Undetermined() if index == place else ResidualMLP() for index in range(depth)])
    return mn.convert(chain, streams=["blocks"])


def test_the_error_names_the_block_and_comes_before_backward_returns() -> None:
    net = undetermined(2)
    loss = loss_of(net(rows()))
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.2"):
        loss.backward()
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.2"):
        torch.autograd.grad(loss_of(net(rows())), list(net.parameters()))


def test_an_exception_in_a_recompute_after_a_wrong_state_names_the_state() -> None:
    """Block 1 is not reconstructed, so block 0 gets a wrong input; what it says of that is only a consequence."""

    class Picky(ResidualMLP):
        """Takes only what it has seen before."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: Tally[Tensor] = Tally()

        def forward(self, x: Tensor) -> Tensor:
            if not self.seen:
                self.seen.append(x.detach().clone())
            elif not torch.equal(self.seen[0], x):
                raise ValueError("never seen")
            return super().forward(x)

    torch.manual_seed(0)
    net = mn.convert(Chain([ResidualMLP(), Picky(), Undetermined(), ResidualMLP()]), streams=["blocks"])
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.2") as caught:
        loss_of(net(rows())).backward()
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_backward_that_fails_leaves_no_comparisons_behind() -> None:
    net = mn.convert(blocks(4), rows())
    loss = loss_of(net(rows()))
    handle = net.stem.weight.register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    handle.remove()
    gc.collect()
    assert not audit._AUDITS
    loss_of(net(rows())).backward()
