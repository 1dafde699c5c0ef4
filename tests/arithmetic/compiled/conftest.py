from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import momentumnet as mn
from momentumnet.arithmetic.compiled import libraries


@pytest.fixture(params=["portable", "avx2", "avx512"])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine and this build have, in turn."""
    if not mn.native.available():
        pytest.skip(f"no native kernels: {mn.native.reason()}")
    before = libraries.cpu().variant
    if not libraries.cpu().select_variant(request.param):
        pytest.skip(f"this machine or this build does not have {request.param}")
    yield request.param
    libraries.cpu().select_variant(before)


@pytest.fixture(params=["OpenMP of PyTorch", "threads of its own"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each kind of threads that the CPU library can use, in turn."""
    library = libraries.cpu().library
    if library is None:
        pytest.skip(f"no native kernels: {mn.native.reason()}")
    if request.param == "OpenMP of PyTorch":
        if not libraries.cpu().threads:
            pytest.skip("PyTorch has loaded no OpenMP library that could be shared")
        yield
    else:
        library.mn_set_openmp(None, None, None)
        yield
        libraries._share_threads(library)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
