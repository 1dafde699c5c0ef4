"""Objects of Python, copied with what they hold, or put back."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from momentumnet.recompute.values.object_copies import copied
from momentumnet.recompute.values.objects import Held, Values, has_state


class Plain:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("__hidden", "keys")

    def __init__(self, keys: Any) -> None:
        self.keys = keys
        self.__hidden = [keys]

    def hidden(self) -> Any:
        return self.__hidden


@dataclass(frozen=True)
class Frozen:
    keys: list[Tensor]


class Pair(NamedTuple):
    keys: Any
    values: Any


class Table(UserDict):  # type: ignore[type-arg]
    """A mapping that is no dict."""


class Output(OrderedDict):  # type: ignore[type-arg]
    """A mapping with attributes beside its entries."""


def test_a_copy_holds_the_same_tensors_in_containers_of_its_own() -> None:
    tensor = torch.ones(2)
    original = Plain(
        flat=tensor,
        nested={"list": [tensor], "pair": Pair(tensor, [1]), "deque": deque([tensor], maxlen=2)},
        more=defaultdict(list, a=[tensor]),
        slotted=Slotted(tensor),
        frozen=Frozen([tensor]),
        table=Table(a=tensor),
        names={"a", "b"},
    )
    made = copied(original)
    assert type(made) is Plain
    assert made.flat is tensor
    made.nested["list"].append(0)
    made.nested["pair"].values.append(2)
    made.nested["deque"].append(0)
    made.more["new"].append(1)
    made.slotted.keys = None
    made.slotted.hidden().append(1)
    made.frozen.keys.clear()
    made.table["b"] = 0
    made.names.add("c")
    assert original.nested["list"] == [tensor]
    assert original.nested["pair"].values == [1]
    assert list(original.nested["deque"]) == [tensor]
    assert made.nested["deque"].maxlen == 2
    assert dict(original.more) == {"a": [tensor]}
    assert original.slotted.keys is tensor
    assert original.slotted.hidden() == [tensor]
    assert original.frozen.keys == [tensor]
    assert list(original.table) == ["a"]
    assert original.names == {"a", "b"}


def test_what_is_held_twice_is_copied_once_and_what_holds_itself_ends() -> None:
    shared = Plain(count=0)
    original = Plain(one=shared, other=[shared])
    original.me = original
    made = copied(original)
    assert made.one is made.other[0]
    assert made.one is not shared
    assert made.me is made


def test_tensors_are_replaced_as_asked() -> None:
    tensor = torch.ones(2, requires_grad=True) * 2
    made = copied({"a": [tensor], "b": tensor}, torch.Tensor.detach)
    assert made["b"].grad_fn is None
    assert made["a"][0].data_ptr() == tensor.data_ptr()


def test_machinery_stays_itself() -> None:
    things = [
        nn.Linear(1, 1),
        logging.getLogger("x"),
        threading.Lock(),
        torch.Generator(),
        len,
        test_machinery_stays_itself,
        Plain,
        "text",
        3,
    ]
    assert not any(map(has_state, things))
    made = copied(Plain(things=things))
    assert made.things is not things
    assert all(a is b for a, b in zip(made.things, things, strict=True))


def test_what_refuses_to_be_copied_or_is_very_large_stays_itself() -> None:
    class Refuses:
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TypeError("no")

        def __init__(self) -> None:
            self.state = 1

    alone = Refuses()
    assert copied(alone) is alone
    large = Plain(items=[[] for _ in range(30_000)])
    assert copied(large) is large
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for calls_around in range(8):  # the stack may end in a copy or between two
        assert called_deeper(calls_around, lambda: copied(deep)) is deep


def called_deeper(calls: int, function: Callable[[], Any]) -> Any:
    """What the function returns below so many calls."""
    return called_deeper(calls - 1, function) if calls else function()


def test_parts_that_know_their_owner_know_the_copy() -> None:
    class Part:
        def __init__(self, owner: Any) -> None:
            self.owner = owner

    class Owner:
        def __init__(self) -> None:
            self.part = Part(self)

        def __copy__(self) -> Owner:
            return Owner()

    made = copied(Owner())
    assert made.part.owner is made


@pytest.mark.parametrize(
    ("owner", "change"),
    [
        ({"a": 1}, lambda owner: owner.update(b=2)),
        (OrderedDict(a=1, b=2), lambda owner: owner.move_to_end("a")),
        ([1, 2], lambda owner: owner.append(3)),
        (deque([1], maxlen=3), lambda owner: owner.append(3)),
        ({1, 2}, lambda owner: owner.add(3)),
        (Plain(a=1), lambda owner: setattr(owner, "b", 2)),
        (Plain(inner={"deep": [1]}), lambda owner: owner.inner["deep"].append(2)),
        (Slotted(1), lambda owner: setattr(owner, "keys", 2)),
        (Slotted(1), lambda owner: delattr(owner, "keys")),
        (({"in a tuple": 1},), lambda owner: owner[0].clear()),
        (Output(a=1), lambda owner: setattr(owner, "extra", 1)),
    ],
)
def test_everything_is_put_back(owner: Any, change: Any) -> None:
    def shown(value: Any) -> str:
        if isinstance(value, Plain):
            return repr(vars(value))
        if isinstance(value, Slotted):
            return repr(getattr(value, "keys", "none"))
        return repr((value, vars(value))) if isinstance(value, Output) else repr(value)

    held, before = Held([owner]), shown(owner)
    assert held.is_unchanged
    change(owner)
    assert shown(owner) != before
    assert not held.is_unchanged
    held.put_back()
    assert shown(owner) == before
    assert held.is_unchanged


def test_values_and_histories_are_put_back() -> None:
    weight = torch.ones(2, requires_grad=True)
    plain, constant = torch.zeros(2), torch.zeros(2)
    held = Held([{"plain": [plain], "constant": constant}], apart=[constant])
    values = Values(held.tensors)
    plain.add_(weight)
    constant.add_(1)
    values.put_back()
    assert plain.tolist() == [0, 0]
    assert not plain.requires_grad
    assert constant.tolist() == [1, 1]
