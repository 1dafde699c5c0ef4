"""What containers share: memory with each other, or with a buffer; and classes of containers with ways of their own."""

from __future__ import annotations

from collections import UserDict, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import momentumnet as mn
from tests.contract.left.keeping import OPTIONS, Keeping, Standing, assert_as_stored, network, standing_in


class BufferInAList(Standing):
    """A buffer, and a part of it, that are held in containers beside their table."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))
        self.held, self.parts = [self.calls], {"first": self.calls[:1]}

    def kept(self, y: Tensor) -> Any:
        self.calls += 1
        return self.held[0][0].clone() + self.parts["first"].clone()

    def standing(self) -> list[Any]:
        return [*self.calls.tolist(), self.held[0] is self.calls, self.parts["first"].tolist()]


class BufferInAnArray(Standing):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))
        self.array = self.calls.numpy()

    def kept(self, y: Tensor) -> Any:
        self.calls += 1
        return self.calls[0].clone() + float(self.array[0])

    def standing(self) -> list[Any]:
        return [*self.calls.tolist(), *self.array.tolist()]


class Parts(Standing):
    """One tensor, its parts, and one that repeats an element of it."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = torch.zeros(4)
        self.parts = [self.whole[:2], self.whole[2:], self.whole[:1].expand(3)]
        self.state = {"row": torch.zeros(2, 2)}
        self.state["first"] = self.state["row"][0]

    def kept(self, y: Tensor) -> Any:
        self.whole += 1
        self.parts[0].add_(1)
        self.state["first"] += 1
        return (self.whole[0] + self.parts[1][0] + self.parts[2][1] + self.state["row"][0, 0]).clone()

    def standing(self) -> list[Any]:
        return [self.whole.tolist(), [part.tolist() for part in self.parts], self.state["row"].tolist()]


class Pair(tuple[Any, ...]):
    """Has a name for its first item, and an attribute."""

    label = ""

    @property
    def first(self) -> Tensor:
        return self[0]


class _Fields(NamedTuple):
    mean: Tensor
    calls: list[int]


class Made(_Fields):
    """Takes less to be made than it has fields."""

    def __new__(cls) -> Made:
        return super().__new__(cls, torch.zeros(2), [0])


class Tuples(Standing):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.made = Pair((torch.zeros(2),)), Made()
        self.pair.label = "own"

    def kept(self, y: Tensor) -> Any:
        assert self.pair.label == "own"
        self.pair.first.add_(1)
        self.made.mean.add_(1)
        return self.pair.first[0] + self.made.mean[0]

    def standing(self) -> list[Any]:
        return [self.pair.first.tolist(), self.made.mean.tolist(), type(self.pair) is Pair, type(self.made) is Made]


class Doubled(list[float]):
    """Shows something else than it holds."""

    def __iter__(self) -> Iterator[float]:
        return (2 * value for value in super().__iter__())


class Unloaded(list[float]):
    """Says that it is not there yet where all of it is asked for."""

    def __iter__(self) -> Iterator[float]:
        raise RuntimeError("not loaded")

    __len__ = None  # type: ignore[assignment]


class Fetched(UserDict[str, float]):
    """Has no items before they are fetched."""

    def __init__(self) -> None:
        self.place = "somewhere"

    def __len__(self) -> int:
        raise RuntimeError("not fetched")


class Halving(deque[float]):
    """Halves what it is given together, and can only grow."""

    def extend(self, items: Iterable[float]) -> None:
        super().extend(item / 2 for item in items)

    def clear(self) -> None:
        raise TypeError("only grows")


class Growing(set[float]):
    def update(self, *items: Iterable[float]) -> None:
        raise TypeError("one at a time")


class OwnWays(Standing):
    def __init__(self) -> None:
        super().__init__()
        self.shown, self.rest, self.fetched = Doubled([1.0]), Unloaded([0.5]), Fetched()
        self.last, self.names = Halving([1.0], maxlen=4), Growing([0.0])

    def kept(self, y: Tensor) -> Any:
        self.shown.append(float(len(self.shown)))
        self.last.append(float(y.mean()))
        self.names.add(float(len(self.names)))
        return self.shown[0] + self.rest[0] + sum(self.last) + max(self.names)

    def standing(self) -> list[Any]:
        return [repr(self.shown), list(self.last), sorted(self.names), vars(self.fetched)]


@pytest.mark.parametrize("kind", [BufferInAList, BufferInAnArray, Parts, Tuples, OwnWays])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_shared_is_seen_and_written_as_with_stored_activations(
    kind: type[Standing], options: dict[str, Any]
) -> None:
    assert_as_stored(kind, options, standing_in, twice=False)


class Options(Keeping):
    """More tuples of numbers than containers are looked at, as many convolutions have, and a record behind them."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(80):
            setattr(self, f"option_{number}", (number, number))
        self.state: dict[str, int] = {"calls": 0}

    def kept(self, y: Tensor) -> float:
        self.state["calls"] += 1
        return 1.0 / self.state["calls"]


def test_tuples_of_numbers_are_no_containers_that_count() -> None:
    model, x = network(Options)
    net = mn.convert(model, x)
    found = [module for module in net.modules() if isinstance(module, Options)]
    before = [module.state["calls"] for module in found]
    net(x).sum().backward()
    assert [module.state["calls"] for module in found] == [calls + 1 for calls in before]
    assert np.isfinite([float(p.grad.norm()) for p in net.parameters() if p.grad is not None]).all()


def test_large_tensors_that_nobody_writes_to_are_not_copied() -> None:
    class Tables(Standing):
        def __init__(self) -> None:
            super().__init__()
            self.state = {"counts": torch.zeros(2000), "table": torch.zeros(3000)}

        def kept(self, y: Tensor) -> Any:
            self.state["counts"] += 1
            return 0.0

    model, x = network(Tables)
    net = mn.convert(model, x)
    net(x).sum().backward()
    copied: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.clone.default:
                copied.append(args[0].numel())
            return function(*args, **(kwargs or {}))

    with Sizes():
        net(x).sum().backward()
    assert 2000 in copied
    assert 3000 not in copied
