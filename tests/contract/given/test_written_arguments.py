"""Blocks that write to a tensor, an array or a container that they are given."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import ReconstructionError, StateRangeError
from tests.contract.branches import WIDTH
from tests.contract.parents import BACKWARDS, Looped, converted
from tests.contract.reference import assert_same, loss_of, train_step
from tests.models import ResidualMLP

WAYS = [{"backward": "reversible"}, {"backward": "checkpointed"}, {"backward": "reversible", "others": "checkpoint"}]
HUGE = 1e6  # times a branch: past the headroom of any scale that was chosen for branches of 1


class Holder:
    """An object that holds an array."""

    def __init__(self) -> None:
        self.inner = np.zeros(2)


def tensor_in(given: Any) -> Any:
    if isinstance(given, Holder):
        return given.inner
    return given["inner"][0] if isinstance(given, dict) else given


def counting(given: Any, x: Tensor) -> Tensor:
    level = float(tensor_in(given)[0])
    tensor_in(given)[0] += 0.1
    return x + level


def averaging(given: Any, x: Tensor) -> Tensor:
    before = tensor_in(given).clone()
    tensor_in(given).mul_(0.5).add_(x.detach().mean(0)[:2])
    return x + before.tanh().mean()


def writing_first(given: Any, x: Tensor) -> Tensor:
    tensor_in(given).mul_(0.5).add_(x.detach().mean(0)[:2])
    return x * tensor_in(given).clone().mean()


class Block(nn.Module):
    factor = 1.0
    writes = True

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.use = nn.Linear(WIDTH, WIDTH), use

    def forward(self, x: Tensor, given: Any) -> Tensor:
        return x + self.factor * torch.tanh(self.layer(self.use(given, x) if self.writes else x))


class Network(nn.Module):
    def __init__(self, use: Callable[[Any, Tensor], Tensor], make: Callable[[], Any], *, by_keyword: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(use) for _ in range(4))
        self.make, self.by_keyword = make, by_keyword

    def forward(self, x: Tensor) -> Tensor:
        self.given = given = self.make()
        for block in self.blocks:
            x = block(x, given=given) if self.by_keyword else block(x, given)
        return x


def rows() -> Tensor:
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))


def network(use: Callable[[Any, Tensor], Tensor], make: Callable[[], Any], *, by_keyword: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Network(use, make, by_keyword=by_keyword)


def alone() -> Tensor:
    return torch.zeros(2)


def in_a_dict() -> dict[str, list[Tensor]]:
    return {"inner": [torch.zeros(2)]}


def array() -> Any:
    return np.zeros(2)


def array_in_a_dict() -> dict[str, list[Any]]:
    return {"inner": [np.zeros(2)]}


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize(
    ("use", "make"),
    [
        *[(use, make) for use in (counting, averaging, writing_first) for make in (alone, in_a_dict)],
        *[(counting, make) for make in (array, array_in_a_dict, Holder)],
    ],
)
def test_gradients_are_those_of_stored_activations(
    use: Callable[[Any, Tensor], Tensor], make: Callable[[], Any], by_keyword: bool, way: dict[str, Any]
) -> None:
    model = network(use, make, by_keyword=by_keyword)
    found, stored = (mn.convert(model, rows(), **options) for options in (way, {"backward": "stored"}))
    for _ in range(3):
        assert_same(train_step(found, (rows(),)), train_step(stored, (rows(),)), tolerance=0.0)
        ours, theirs = (tensor_in(net.given) for net in (found, stored))
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


class Twice(nn.Module):
    """Writes to one of its arguments, and reads the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, written: Tensor, read: Tensor) -> Tensor:
        written.add_(0.5)
        return x + torch.tanh(self.layer(x) * read.sum())


class Doubled(nn.Module):
    """Gives its blocks one tensor for both."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Twice() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        given = torch.zeros(2)
        for block in self.blocks:
            x = block(x, given, read=given)
        return x


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_tensor_that_is_given_twice_is_one_in_a_recompute_too(way: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Doubled()
    found, stored = (mn.convert(model, rows(), **options) for options in (way, {"backward": "stored"}))
    for _ in range(2):
        assert_same(train_step(found, (rows(),)), train_step(stored, (rows(),)), tolerance=0.0)


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("make", [alone, in_a_dict])
@pytest.mark.parametrize("use", [averaging, writing_first])
def test_a_pass_that_is_played_again(
    use: Callable[[Any, Tensor], Tensor],
    make: Callable[[], Any],
    by_keyword: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = network(use, make, by_keyword=by_keyword)
    nets = [mn.convert(model, rows(), backward=kind) for kind in ("reversible", "stored")]
    for net in nets:
        loss_of(net(rows())).backward()
        net.zero_grad(set_to_none=True)
        net.blocks[1].factor = HUGE
    with caplog.at_level(logging.WARNING, "momentumnet"):
        outcomes = [train_step(net, (rows(),)) for net in nets]
    assert "played again" in caplog.text
    assert_same(*outcomes, tolerance=0.0)
    assert torch.equal(*(tensor_in(net.given) for net in nets))


@pytest.mark.parametrize("make", [array, array_in_a_dict, Holder])
def test_a_pass_that_would_be_played_again_on_an_array_that_it_has_changed(make: Callable[[], Any]) -> None:
    net = mn.convert(network(counting, make), rows())
    loss_of(net(rows())).backward()
    net.blocks[1].factor = HUGE
    with pytest.raises(StateRangeError, match="cannot be made over"):
        net(rows())


@pytest.mark.parametrize("make", [alone, in_a_dict])
def test_blocks_that_begin_to_write_later_are_refused(make: Callable[[], Any]) -> None:
    net = mn.convert(network(averaging, make), rows())
    for writes in (False, True):
        for block in net.blocks:
            block.writes = writes
        if not writes:
            train_step(net, (rows(),))
    with pytest.raises(ReconstructionError, match="changed in place"):
        train_step(net, (rows(),))


class Collecting(ResidualMLP):
    """Appends to a list and a mapping of its parent's."""

    def forward(self, x: Tensor, losses: list[Tensor], counts: dict[str, int]) -> Tensor:
        branch = self.inner(x)
        losses.append(branch.square().mean())
        counts["blocks"] = counts.get("blocks", 0) + 1
        return x + branch


def test_containers_that_blocks_write_into_are_the_parents_own() -> None:
    def run(parent: Looped, x: Tensor) -> Tensor:
        losses: list[Tensor] = []
        counts: dict[str, int] = {}
        for block in parent.blocks:
            x = block(x, losses, counts)
        assert counts == {"blocks": 4}
        assert len(losses) == 4
        return x * (1 + torch.stack(losses).sum())

    torch.manual_seed(0)
    model, x = Looped(run, Collecting), torch.randn(5, WIDTH)
    outcomes = [train_step(converted(model, backward), (x,)) for backward in BACKWARDS]
    assert_same(outcomes[1], outcomes[0])
