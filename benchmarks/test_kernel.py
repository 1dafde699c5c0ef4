"""The momentum step beside ``x.add_(v)`` over the same bytes, by pytest-benchmark.

python -m pytest -o addopts= benchmarks/test_kernel.py --benchmark-group-by=param:elements
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from momentumnet import native
from momentumnet.bench.kernel.operations import operations

NAMES = ("x.add_(v)", "copy", "native step", "native undo", "reference step", "reference undo")


@pytest.mark.parametrize("elements", [1 << 16, 1 << 20])
@pytest.mark.parametrize("name", NAMES)
def test_kernel(benchmark: BenchmarkFixture, name: str, elements: int) -> None:
    if name.startswith("native") and not native.available():
        pytest.skip(native.reason())
    benchmark(operations(elements, Fraction(9, 10), torch.device("cpu"))[name])
