"""Streams whose range is checked with backward: forward reads nothing, and what went wrong is NaN, and an error."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import momentumnet as mn
from momentumnet.core.state.late_check import LateCheck
from momentumnet.streams.blocks.converted import streams_of
from tests.contract.outside.kept_blocks import DEPTH, Wide, chain, converted
from tests.contract.read_counts import Dropping, Growing, blocks, packed_bytes, reads, rows
from tests.contract.reference import assert_same, loss_of, train_step
from tests.contract.scale.late_checks import WideGrowing, late
from tests.models import WIDTH, Case, ResidualMLP

KINDS = [
    {},
    {"gamma": 0.9},
    {"others": "checkpoint"},
    {"backward": "checkpointed"},
    {"backward": "stored"},
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16},
    {"coupling": "dr2net"},
]


@pytest.mark.parametrize("kind", [ResidualMLP, Dropping])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_forward_reads_nothing_and_backward_once(kind: type[nn.Module], options: dict[str, Any]) -> None:
    dtype = options.get("dtype", torch.float32)
    options = {name: value for name, value in options.items() if name != "dtype"}
    net = late(mn.convert(blocks(5, kind).to(dtype), rows().to(dtype), **options))
    for _ in range(3):
        with reads() as counts:
            loss = loss_of(net(rows().to(dtype)))
        assert counts.total() == 0, counts
        with reads() as counts:
            loss.backward()
        # What the forward has told, and the checksums: each its own kind of number.
        assert 1 <= counts.total() <= 2, counts


@pytest.mark.parametrize("kept", [0, 2, DEPTH])
def test_blocks_that_keep_their_activations_read_nothing_in_forward(kept: int) -> None:
    early = converted(chain(Wide), rows(), kept)
    other = late(early)
    train_step(early, (rows(),))
    early.zero_grad(set_to_none=True)
    with reads() as counts:
        got = train_step(other, (rows(),), backward=lambda output: None)
    assert counts.total() == 0, counts
    assert torch.equal(got.output, train_step(early, (rows(),), backward=lambda output: None).output)
    assert_same(train_step(other, (rows(),)), train_step(early, (rows(),)), tolerance=0.0)


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
def test_numbers_are_those_of_checks_in_forward(case: Case, others: str) -> None:
    early = mn.convert(case.model(), case.example(), others=others)
    other = copy.deepcopy(early)
    mn.set_range_check(other, "backward")
    for _ in range(3):
        for net in (early, other):
            net.zero_grad(set_to_none=True)
        assert_same(train_step(other, case.example()), train_step(early, case.example()), tolerance=0.0)


def stored(net: nn.Module) -> nn.Module:
    """The same, with the same scales, and ordinary autograd."""
    net = copy.deepcopy(net)
    for stream in streams_of(net):
        stream.backward = "stored"
    return net


WRONG = [1e6, float("nan"), float("inf")]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("factor", WRONG)
@pytest.mark.parametrize("place", [0, 4])
def test_what_goes_wrong_is_nan_and_an_error_and_then_right(options: dict[str, Any], factor: float, place: int) -> None:
    dtype = options.get("dtype", torch.float32)
    factor = 1e30 if dtype == torch.float64 and factor == WRONG[0] else factor
    options = {name: value for name, value in options.items() if name != "dtype"}
    net = late(mn.convert(blocks(5, Growing).to(dtype), rows().to(dtype), **options))
    net.blocks[place].factor = factor
    output = net(rows().to(dtype))
    assert output.isnan().all()
    with pytest.raises(mn.StateRangeError, match=r"'blocks'.*set_range_check\(model, 'forward'\)"):
        loss_of(output).backward()
    net.load_state_dict(blocks(5, Growing).state_dict())
    net.zero_grad(set_to_none=True)
    reference = stored(net)
    if dtype == torch.float64 and factor == 1e30:
        with pytest.raises(mn.StateRangeError, match="does not fit the exact state"):
            net(rows().to(dtype))
        return
    got, expected = (train_step(network, (rows().to(dtype),)) for network in (net, reference))
    for mine, theirs in ((got.output, expected.output), (got.gradients, expected.gradients)):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_velocity_without_room_at_rest_is_an_error_and_then_has_it(dtype: torch.dtype) -> None:
    """The branches of the last block grow eightfold: they fit the scale, not the bits in which v goes to rest."""
    net = mn.convert(blocks(5, Growing).to(dtype), rows().to(dtype))
    for block in net.blocks:
        block.factor = 1e-3
    net = late(net)
    for block in net.blocks:
        block.factor = 0.05
    output = net(rows().to(dtype))
    assert output.isnan().all()
    with pytest.raises(mn.StateRangeError):
        loss_of(output).backward()
    net.load_state_dict(blocks(5, Growing).state_dict())
    net.zero_grad(set_to_none=True)
    reference = stored(net)
    with reads() as counts:
        got = train_step(net, (rows().to(dtype),), backward=lambda output: None)
    assert counts.total() == 0
    assert got.output.isfinite().all()
    net.load_state_dict(blocks(5, Growing).state_dict())
    assert_same(train_step(net, (rows().to(dtype),)), train_step(reference, (rows().to(dtype),)), tolerance=0.0)


def test_a_state_that_kept_blocks_go_on_from_is_checked_too() -> None:
    net = late(converted(chain(WideGrowing), rows(), 2))
    for block in net.blocks:
        block.factor = 40.0
    output = net(rows())
    assert output.isnan().all()
    with pytest.raises(mn.StateRangeError):
        loss_of(output).backward()


def test_blocks_that_keep_their_activations_are_looked_at_once_each() -> None:
    net = converted(chain(Wide), rows(), DEPTH)
    with reads() as counts:
        net(rows())
    assert counts.total() <= DEPTH + 3, counts  # the start twice, each step, and all at the end


@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_a_stream_learns_the_same(factor: float) -> None:
    """Also where its scale is made coarser on the way, which backward undoes before the reports are read."""
    nets = [mn.convert(blocks(10, Growing), rows(), gamma=0.9) for _ in range(2)]
    nets[0] = late(nets[0])
    train_step(nets[1], (rows(),))
    for net in nets:
        for block in net.blocks:
            block.factor = factor
        mn.set_range_check(net, "forward")
        train_step(net, (rows(),))
    mn.set_range_check(nets[0], "backward")
    for _ in range(3):
        late_state, early_state = (mn.training_state(net) for net in nets)
        assert late_state == early_state
        for net in nets:
            train_step(net, (rows(),))


def test_a_pass_without_backward_teaches_the_next_one() -> None:
    net = late(mn.convert(blocks(5, Growing), rows()))
    net.blocks[2].factor = 1e6
    assert net(rows()).isnan().all()
    assert net(rows()).isfinite().all()


def test_a_step_that_is_left_out_leaves_nothing_once_buffers_are_put_back() -> None:
    """NaN stays in running statistics; the error says so, and what to do."""
    net = nn.Sequential(mn.convert(blocks(5, Growing), rows()), nn.BatchNorm1d(4))
    net[0] = late(net[0])
    loss_of(net(rows())).backward()
    buffers = [buffer.clone() for buffer in net.buffers()]
    net[0].blocks[2].factor = 1e6
    with pytest.raises(mn.StateRangeError, match="put back buffers"):
        loss_of(net(rows())).backward()
    assert net[1].running_mean.isnan().all()
    net.zero_grad()
    for buffer, before in zip(net.buffers(), buffers, strict=True):
        buffer.copy_(before)
    loss_of(net(rows())).backward()
    with torch.no_grad():
        assert net.eval()(rows()).isfinite().all()


def test_it_is_told_again_by_each_backward_of_a_graph() -> None:
    net = late(mn.convert(blocks(5, Growing), rows()))
    net.blocks[2].factor = 1e6
    loss = loss_of(net(rows()))
    for _ in range(2):
        with pytest.raises(mn.StateRangeError):
            loss.backward(retain_graph=True)


def test_a_copy_that_is_made_on_the_way() -> None:
    net = late(mn.convert(blocks(5, Growing), rows()))
    copies: list[nn.Module] = []
    hook = net.blocks[2].register_forward_hook(lambda module, args, output: copies.append(copy.deepcopy(net)))
    loss_of(net(rows())).backward()
    hook.remove()
    copies[0].blocks[2]._forward_hooks.clear()
    copies[0].zero_grad()
    loss_of(copies[0](rows())).backward()


def test_two_streams() -> None:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(6)]
    net = mn.ReversibleSequential(*parts, split_dim=1)
    mn.set_range_check(net, "backward")
    x = torch.randn(3, 8)
    expected = net(x)
    loss_of(expected).backward()
    with reads() as counts:
        got = net(x)
    assert counts.total() == 0
    assert torch.equal(got, expected)
    loss_of(got).backward()
    with torch.no_grad():
        parts[3][0].weight.fill_(torch.nan)
    output = net(x)
    assert output.isnan().all()
    with pytest.raises(mn.StateRangeError):
        loss_of(output).backward()


def test_a_state_at_rest_takes_half_a_byte_more_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    rests = packed_bytes(monkeypatch)
    net = mn.convert(blocks(6).bfloat16(), rows().bfloat16())
    mn.set_range_check(net, "backward")
    for _ in range(3):
        loss_of(net(rows().bfloat16())).backward()
    assert 0 < rests[0] < rests[1] == rests[2] <= rests[0] + 0.75


def test_copies_keep_the_setting_and_no_check() -> None:
    net = late(mn.convert(blocks(5, Growing), rows()))
    output = net(rows())  # waits for its backward
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        loss_of(other(rows())).backward()
        with reads() as counts:
            loss_of(other(rows()))
        assert counts.total() == 0
    loss_of(output).backward()


def test_checks_go_with_their_graphs() -> None:
    def count() -> int:
        gc.collect()
        return sum(type(thing) is LateCheck for thing in gc.get_objects())

    net = late(mn.convert(blocks(5, Growing), rows()))
    before = count()
    for _ in range(4):
        net(rows())
    assert count() <= before + 1


def test_bad_input() -> None:
    net = mn.convert(blocks(3), rows())
    with pytest.raises(ValueError, match="when must be one of 'forward', 'backward', got 'late'"):
        mn.set_range_check(net, "late")
    with pytest.raises(mn.ConversionError, match="convert it first"):
        mn.set_range_check(nn.Linear(WIDTH, WIDTH), "backward")
    planned = mn.convert(blocks(3), rows(), budget="1GiB", gamma=0)
    for model in (planned, nn.Sequential(planned)):
        with pytest.raises(mn.ConversionError, match="converted without any, as by a plan at gamma 0"):
            mn.set_range_check(model, "backward")
