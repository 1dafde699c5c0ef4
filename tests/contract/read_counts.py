"""Networks whose steps report of themselves, and how often their values are read."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import momentumnet as mn
from momentumnet.core.state.exact_state import ExactState
from tests.contract.unequal_blocks import Undetermined
from tests.models import WIDTH, Chain, ResidualMLP

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
