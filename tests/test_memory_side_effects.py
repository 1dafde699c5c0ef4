"""Measuring memory leaves alone what it measures in: values, errors, environment, another measurement."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import profile

from momentumnet.memory import measure_memory

FLOAT = 4


def test_changes_nothing_that_is_computed() -> None:
    layer = nn.Sequential(nn.Linear(16, 16), nn.Dropout(), nn.Linear(16, 1))
    x = torch.randn(4, 16)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)
        layer.zero_grad()
        layer(x).sum().backward()
        return [p.grad.clone() for p in layer.parameters() if p.grad is not None]

    plain = gradients()
    measured: list[torch.Tensor] = []
    measure_memory(lambda: measured.extend(gradients()))
    assert all(torch.equal(a, b) for a, b in zip(plain, measured, strict=True))


@pytest.mark.parametrize("inner", [lambda: measure_memory(lambda: None), lambda: run_profiler()])
def test_nesting_is_refused(inner: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError):
        measure_memory(inner)
    assert measure_memory(lambda: torch.empty(10)).saved_bytes == 10 * FLOAT


def run_profiler() -> None:
    with profile():
        torch.empty(1)


def test_nested_measurement_says_so() -> None:
    with pytest.raises(RuntimeError, match="profiler that is already running"):
        measure_memory(lambda: measure_memory(lambda: None))


def test_exception_of_the_function_passes_through() -> None:
    def fn() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        measure_memory(fn)
    assert measure_memory(lambda: torch.empty(10)).saved_bytes == 10 * FLOAT


def test_environment_is_left_alone() -> None:
    before = dict(os.environ)
    measure_memory(lambda: None)
    assert dict(os.environ) == before
