"""One training step of 16 blocks, stored, checkpointed and converted, by pytest-benchmark.

python -m pytest -o addopts= benchmarks/test_step.py --benchmark-group-by=param:name
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from momentumnet.bench.measuring.methods import methods
from momentumnet.bench.measuring.training_step import TrainingStep
from momentumnet.bench.networks.measured import FAMILIES, family

GAMMAS = (Fraction(9, 10), Fraction(1, 8))
METHODS = ("stored", "checkpoint", "checkpoint √n", "momentum 9/10", "momentum 1/8")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_step(benchmark: BenchmarkFixture, method: str, name: str) -> None:
    torch.manual_seed(0)
    network = family(name, 16)
    step = TrainingStep(network.example(), None)
    benchmark(step, methods(network, GAMMAS, arithmetics=("exact",))[method](network.build(), step.x))
