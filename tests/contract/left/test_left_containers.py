"""Records, counters and states that blocks keep in lists, dicts, sets and deques on attributes."""

from __future__ import annotations

from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.left.keeping import OPTIONS, WIDTH, Keeping, assert_as_stored, network


class Recorded(Keeping):
    """The mean of the last three, in a deque that drops the first."""

    def __init__(self) -> None:
        super().__init__()
        self.last: deque[Tensor] = deque([torch.zeros(())], maxlen=3)

    def kept(self, y: Tensor) -> float:
        found = float(sum(self.last))
        self.last.append(y.mean())
        return found


class Counted(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Any] = OrderedDict(calls=0, seen=defaultdict(list), sizes=set())

    def kept(self, y: Tensor) -> float:
        self.state["calls"] += 1
        self.state["seen"]["means"].append(float(y.mean()))
        self.state["sizes"].add(len(self.state["seen"]["means"]))
        return 0.1 * self.state["calls"] + len(self.state["sizes"]) + sum(self.state["seen"]["means"])


class Lately(Keeping):
    """Makes its list in the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] | None = None

    def kept(self, y: Tensor) -> float:
        if self.seen is None:
            self.seen = []
        self.seen.append(float(y.mean()))
        return 0.1 * len(self.seen)


class InATuple(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.pair: tuple[list[int], str] = ([], "calls")

    def kept(self, y: Tensor) -> float:
        self.pair[0].append(len(self.pair[0]))
        return 0.1 * len(self.pair[0])


class Long(Keeping):
    """A record of all steps, and one of the last 3000."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = [0.0] * 5000
        self.last: deque[float] = deque([0.0] * 3000, maxlen=3000)

    def kept(self, y: Tensor) -> float:
        self.seen.append(float(y.mean()))
        self.last.append(float(y.mean()))
        return len(self.seen) / 5000 + sum(self.last)


class Emptied(Keeping):
    """Hands on what it has kept, and begins again: also where the list, the dict and the set are empty."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.state: dict[str, float] = {}
        self.pair: tuple[set[int]] = (set(),)

    def kept(self, y: Tensor) -> float:
        found = len(self.seen) + sum(self.state.values()) + len(self.pair[0])
        if self.seen:
            for kept in (self.seen, self.state, self.pair[0]):
                kept.clear()
        else:
            self.seen.append(0.5)
            self.state["mean"] = float(y.mean())
            self.pair[0].add(1)
        return 0.1 * found


class Of(list[float]):
    """A list with a total of its own, which refuses what is no number."""

    total = 0.0

    def append(self, entry: float) -> None:
        super().append(float(entry))
        self.total += entry


class Own(Keeping):
    """Containers of classes of their own, of the library's, and in an object that has fields alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.state = Of(), Counter[str]()
        self.last = UserDict(calls=0)
        self.pair = SimpleNamespace(calls=0, means=[])

    def kept(self, y: Tensor) -> float:
        self.seen.append(float(y.mean()))
        self.state.update(["calls", "means"])
        self.last["calls"] += 1
        self.pair.calls += 1
        self.pair.means.append(float(y.mean()))
        return self.seen.total + sum(self.state.values()) + self.last["calls"] + self.pair.calls


KINDS: tuple[type[Keeping], ...] = (Recorded, Counted, Lately, InATuple, Long, Emptied, Own)


def kept_in(net: nn.Module) -> list[Any]:
    return [
        getattr(module, name)
        for module in net.modules()
        for name in ("last", "state", "seen", "pair", "losses")
        if hasattr(module, name)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_kept_is_seen_and_changed_as_with_stored_activations(
    kind: type[Keeping], options: dict[str, Any]
) -> None:
    assert_as_stored(kind, options, lambda net: repr(kept_in(net)))


class Paired(Keeping):
    """A record of pairs, each of which is a container."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, float]] = []

    def kept(self, y: Tensor) -> float:
        self.seen.append((float(y.mean()), float(y.std())))
        return 0.01 * len(self.seen)


def test_a_record_of_more_containers_than_are_looked_at() -> None:
    model, x = network(Paired)
    net = mn.convert(model, x)
    for step in range(80):
        net(x).sum().backward()
        assert all(len(seen) == step + 1 for seen in kept_in(net))


class Collecting(nn.Module):
    """Adds an auxiliary loss of its graph to a list that all blocks share."""

    losses: list[Tensor] = []  # noqa: RUF012 - set by the network

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).tanh()
        self.losses.append(y.square().mean())
        return y


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_in_a_list_are_those_of_the_forward(options: dict[str, Any]) -> None:
    found = []
    for given in ({"backward": "stored"}, options):
        model, x = network(Collecting)
        net = mn.convert(model, x, gamma=1 / 8, **given)
        losses: list[Tensor] = []
        for module in net.modules():
            if isinstance(module, Collecting):
                module.losses = losses
        for _ in range(2):
            losses.clear()
            output = net(x)
            assert len(losses) == 4
            (output.square().sum() + sum(losses)).backward()
            assert len(losses) == 4
            assert all(loss.grad_fn is not None for loss in losses)
        found.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *found))


class Switched(Keeping):
    """Keeps a record from when somebody puts one in the place of None."""

    seen: Any

    def __init__(self) -> None:
        super().__init__()
        self.seen = None

    def kept(self, y: Tensor) -> float:
        if self.seen is None:
            return 0.0
        if isinstance(self.seen, np.ndarray):
            self.seen += 1
            return 0.1 * float(self.seen)
        self.seen.append(float(y.mean()))
        return 0.1 * len(self.seen)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [list, lambda: np.zeros(()), lambda: deque(maxlen=3)], ids=["list", "array", "deque"])
def test_a_record_that_is_switched_on_between_two_steps(make: Callable[[], Any], options: dict[str, Any]) -> None:
    found = []
    for given in ({"backward": "stored"}, options):
        model, x = network(Switched)
        net = mn.convert(model, x, gamma=1 / 8, inplace=True, **given)
        for on in (False, True, True, False, True):
            for module in net.modules():
                if isinstance(module, Switched):
                    module.seen = make() if on else None
            net(x).square().sum().backward()
        found.append(([parameter.grad for parameter in net.parameters()], repr(kept_in(net))))
    (expected, stands), (ours, our_stands) = found
    assert all(map(torch.equal, ours, expected))
    assert our_stands == stands
