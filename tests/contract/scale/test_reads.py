"""Forward and backward read nothing from the device for a block; what is wrong is told before backward returns."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import momentumnet as mn
from momentumnet.arithmetic.reports import Reading
from momentumnet.core.checks import audit
from momentumnet.streams.blocks.converted import streams_of
from tests.contract.read_counts import (
    Dropping,
    blocks,
    packed_bytes,
    reads,
    rows,
    undetermined,
)
from tests.contract.reference import assert_same, loss_of, train_step
from tests.contract.unequal_blocks import Undetermined
from tests.models import WIDTH, Case, Chain, ResidualMLP
from tests.tally import Tally


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
    others = {"others": "checkpoint"} if budget is None else {}
    x = rows().cuda()  # which waits itself
    net = mn.convert(blocks(6, Dropping).cuda(), x, budget=budget, **others)
    loss_of(net(x)).backward()  # tries out the norms
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_of(net(x)).backward()
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


# Where values are asked for, in `momentumnet.core`.
ASKING = (
    *(f"state.{name}" for name in ("watch", "integer_state", "late_check")),
    *("checks.audit", "passes.pass_start", "rewind.tape", "scaling.scale", "scaling.spread"),
)


def test_what_a_replayed_graph_cannot_read_is_told_by_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are there but cannot be read: nothing is raised on the way, `check_replays` raises once."""
    mn.check_replays()
    net, wrong = mn.convert(blocks(4), rows()), undetermined(2)
    expected = train_step(net, (rows(),))
    net.zero_grad(set_to_none=True)
    wrong(rows())  # a first pass without example inputs is looked at, so it has to come before
    for module in ASKING:
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


def storing(count: int, net: nn.Module) -> nn.Module:
    """The network, so many of whose last blocks keep their activations, as in most plans."""
    for stream in streams_of(net):
        stream.kept = count
    return net


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_fake_tensors_through_blocks_that_keep_their_activations(kept: int) -> None:
    net = storing(kept, mn.convert(blocks(4), rows()))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        loss_of(net(mode.from_tensor(rows()))).backward()
    assert all(isinstance(parameter.grad, FakeTensor) for parameter in net.parameters())


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_a_graph_of_blocks_that_keep_their_activations_reads_nothing(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their steps are looked at one by one elsewhere, as they cannot be made over."""
    mn.check_replays()
    net = storing(kept, mn.convert(blocks(4), rows()))
    expected = train_step(net, (rows(),))
    net.zero_grad(set_to_none=True)
    for module in ASKING:
        monkeypatch.setattr(f"momentumnet.core.{module}.has_values", lambda tensor: False)
    with reads() as counts:
        got = train_step(net, (rows(),))
    assert counts.total() == 0
    assert_same(got, expected, tolerance=0.0)
    mn.check_replays()
    with torch.no_grad():
        net.blocks[3].inner[2].weight.mul_(1e12)
    assert train_step(net, (rows(),)).output.isnan().all()
    with pytest.raises(mn.ReconstructionError, match="outgrew"):
        mn.check_replays()


class Queried:
    """An event of CUDA's."""

    def query(self) -> bool:
        return True


@pytest.mark.parametrize("captured", [False, True])
def test_no_event_is_asked_while_a_graph_is_recorded(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass to which no backward came waits to be looked at: to ask for it then would break the recording off."""
    reading = Reading(torch.zeros(2))
    reading._copied = Queried()  # type: ignore[assignment]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured)
    if captured:
        monkeypatch.setattr(Queried, "query", lambda _: pytest.fail("asked"))
    assert reading.is_there is not captured
