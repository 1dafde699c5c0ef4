"""Containers that a block has changed, and that somebody keeps while others stand there: they stay as left."""

from __future__ import annotations

from collections import Counter, OrderedDict, UserDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn


def append(record: Any, value: float) -> None:
    record.append(value)


def count(record: Any, value: float) -> None:
    record["calls"] = record.get("calls", 0) + 1


def add(record: Any, value: float) -> None:
    record += 1


def draw(record: Any, value: float) -> None:
    record.random()


def nested(record: Any, value: float) -> None:
    record["losses"].append(value)


def state_of(record: Any) -> Any:
    if isinstance(record, np.random.Generator):
        return record.bit_generator.state
    return record.tolist() if isinstance(record, np.ndarray) else record


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any, float], None]]] = {
    "list": (list, append),
    "deque": (deque, append),
    "dict": (dict, count),
    "ordered": (OrderedDict, count),
    "counter": (Counter, count),
    "of a class of its own": (UserDict, count),
    "in one another": (lambda: {"losses": []}, nested),
    "array": (lambda: np.zeros(3), add),
    "generator": (lambda: np.random.default_rng(0), draw),
}


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(6, 6), kind
        self.record = KINDS[kind][0]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).tanh()
        KINDS[self.kind][1](self.record, float(y.detach().sum()))
        return x + y


def records(kind: str, backward: str) -> list[Any]:
    """All that were kept in two steps of two forwards, of which each has a record of its own."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*(Block(kind) for _ in range(3))), torch.randn(5, 6)
    net = mn.convert(model, x, gamma=1 / 8, backward=backward)
    kept: list[Any] = []
    for _ in range(2):
        loss = torch.zeros(())
        for scale in (1, 2):
            for block in net:
                block.record = KINDS[kind][0]()
                kept.append(block.record)
            loss = loss + net(scale * x).square().sum()
        if isinstance(kept[0], list | deque):
            kept[0].append(0.0)  # by whoever keeps it
        loss.backward()
    return [state_of(record) for record in kept]


@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_stays_as_the_forward_has_left_it(kind: str, backward: str) -> None:
    assert records(kind, backward) == records(kind, "stored")
