"""Objects by which blocks hand values on: a recompute sees in them what the first run saw."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.given.cached_nets import (
    BLOCKS,
    WIDTH,
    Notebook,
    OtherName,
    both,
    tokens,
)
from tests.contract.reference import assert_same, train_step


class Carries(nn.Module):
    """A block that reads what the one before wrote into the object, and writes for the next one."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, state: Any) -> Tensor:
        bias = getattr(state, "bias", None)
        state.bias = self.linear(x) if bias is None else bias + 0.5 * self.linear(x)
        state.seen = [*getattr(state, "seen", []), x]
        return x + torch.tanh(state.bias)


@pytest.mark.parametrize("make", [types.SimpleNamespace, lambda: types.SimpleNamespace(inner=Notebook())])
def test_an_object_that_carries_values_from_block_to_block(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    stored, reversible = both(OtherName(make, Carries))
    assert_same(train_step(reversible, (tokens(),)), train_step(stored, (tokens(),)))
    assert len(reversible.given.seen) == BLOCKS  # as in the network itself, once


def test_a_pass_without_a_backward_is_freed_though_an_object_holds_its_tensors() -> None:
    gc.collect()
    gc.disable()
    try:
        net = mn.convert(OtherName(types.SimpleNamespace, Carries), tokens())
        output = net(tokens())
        mark = weakref.ref(net.given.seen[1])
        del output
        net.given = None
        assert mark() is None
    finally:
        gc.enable()
