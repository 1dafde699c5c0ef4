"""A stream that has lost blocks is refused: what it would return is no network that anybody has asked for."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, ResidualMLP

GAMMA = 0.5
LOST = r"stream .* has lost {} of its 6 blocks: {}"


def data() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, WIDTH)


def residual() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[ResidualMLP() for _ in range(6)])


def converted(gamma: float = GAMMA, **options: str) -> nn.Sequential:
    return mn.convert(residual(), data(), gamma=gamma, **options)


def without_its_end() -> nn.Module:
    net = converted()
    del net[-1]
    return net


def without_its_beginning() -> nn.Module:
    return converted()[3:]


def with_a_new_block() -> nn.Module:
    net = converted()
    net[5] = ResidualMLP()
    return net


def reverted_in_part() -> nn.Module:
    net = converted()
    mn.revert(net[5], inplace=True)
    return net


def copied_in_part() -> nn.Module:
    return copy.deepcopy(converted()[:5])


def saved_in_part() -> nn.Module:
    file = io.BytesIO()
    torch.save(converted()[:5], file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


CUTS: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "deleted": (without_its_end, 1, "'5'"),
    "the rest deleted": (without_its_beginning, 3, "'0', '1', '2' .deleted"),
    "replaced": (with_a_new_block, 1, "'5'"),
    "reverted": (reverted_in_part, 1, "'5'"),
    "copied": (copied_in_part, 1, "'5'"),
    "saved": (saved_in_part, 1, "'5'"),
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", CUTS)
def test_a_stream_that_has_lost_blocks_is_refused(name: str, gradients: bool) -> None:
    cut, count, blocks = CUTS[name]
    net = cut()
    gc.collect()
    with torch.set_grad_enabled(gradients), pytest.raises(mn.ConversionError, match=LOST.format(count, blocks)):
        net(data())


@pytest.mark.parametrize("name", CUTS)
def test_what_the_error_says_helps(name: str) -> None:
    net = CUTS[name][0]()
    again = mn.convert(mn.revert(net), data(), gamma=GAMMA)
    assert again(data()).shape == data().shape


def test_many_that_are_lost_are_told_in_one_line() -> None:
    net = mn.convert(nn.Sequential(*[ResidualMLP() for _ in range(8)]), data())[7:]
    with pytest.raises(mn.ConversionError, match=r"lost 7 of its 8 blocks: '0', '1', '2', '3', '4' and 2 more"):
        net(data())


@pytest.mark.parametrize("backward", ["stored", "checkpointed"])
def test_also_where_activations_are_kept(backward: str) -> None:
    net = converted(backward=backward)
    del net[-1]
    with pytest.raises(mn.ConversionError, match="has lost 1"):
        net(data())


def test_by_another_coupling() -> None:
    net = mn.convert(residual(), data(), coupling="bdia")
    del net[-1]
    with pytest.raises(mn.ConversionError, match="has lost 1"):
        net(data())


def test_without_a_velocity_blocks_may_go() -> None:
    net, plain = converted(gamma=0.0), residual()
    del net[2]
    del plain[2]
    torch.testing.assert_close(net(data()), plain(data()))


def test_a_block_that_is_taken_out_and_put_back_is_there() -> None:
    net, expected = converted(), converted()(data())
    last = net[5]
    del net[5]
    net.append(last)
    assert torch.equal(net(data()), expected)


@pytest.mark.parametrize("way", ["deepcopy", "save", "copy of a copy"])
def test_a_whole_copy_has_lost_none(way: str) -> None:
    net, expected = converted(), converted()(data())
    if way == "save":
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        found = torch.load(file, weights_only=False)
    else:
        found = copy.deepcopy(copy.deepcopy(net) if way == "copy of a copy" else net)
    del net
    gc.collect()
    assert torch.equal(found(data()), expected)


def test_the_copy_does_not_need_the_blocks_of_the_original() -> None:
    net = converted()
    other = copy.deepcopy(net)
    del net[-1]
    expected = converted()(data())
    assert torch.equal(other(data()), expected)
    with pytest.raises(mn.ConversionError, match="has lost 1"):
        net(data())
