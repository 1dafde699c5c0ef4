from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import momentumnet as mn
from momentumnet.core import kernels


@pytest.fixture(params=["portable", "avx2", "avx512"])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine and this build have, in turn."""
    if not mn.native.available():
        pytest.skip(f"no native kernels: {mn.native.reason()}")
    before = kernels.cpu().variant
    if not kernels.cpu().select_variant(request.param):
        pytest.skip(f"this machine or this build does not have {request.param}")
    yield request.param
    kernels.cpu().select_variant(before)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
