"""Kernels that are given tensors whose elements cannot be read four at once."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from momentumnet.arithmetic import adjoint
from momentumnet.arithmetic.compiled import launching, selection


def off_the_grid(value: Tensor) -> Tensor:
    """The same values where no four of them can be read at once."""
    memory = value.new_empty(value.numel() + 1)
    memory[1:] = value.reshape(-1)
    return memory[1:]


def launched_off_the_grid(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Have all launches made on such tensors; the set gets the names of the kernels."""
    launch, launched = launching.launch, set[str]()

    def moved(name: str, constants: Any, *tensors: Tensor | None) -> None:
        others = [None if tensor is None else off_the_grid(tensor) for tensor in tensors]
        launch(name, constants, *others)  # type: ignore[arg-type]
        for tensor, other in zip(tensors, others, strict=True):
            if tensor is not None and other is not None:
                tensor.copy_(other.view_as(tensor))
        launched.add(name)

    for module in (launching, selection, adjoint):
        monkeypatch.setattr(module, "launch", moved)
    return launched
