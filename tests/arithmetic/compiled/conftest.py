from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

import momentumnet as mn
from momentumnet.arithmetic.compiled import libraries
from tests.arithmetic.compiled.emulation import OnDeviceZero, emulated_cuda
from tests.arithmetic.compiled.sources import build

EMULATED = "cuda, emulated"


@pytest.fixture(scope="session")
def cuda_on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> OnDeviceZero:
    """The kernels of the CUDA library, for CPU tensors."""
    if sys.platform != "linux":
        pytest.skip("threads that take turns are made by ucontext.h of Linux")
    try:
        build.cpp_compiler()
    except build.NotBuilt as reason:
        pytest.skip(str(reason))
    return OnDeviceZero(emulated_cuda(tmp_path_factory.mktemp("emulated")))


@pytest.fixture(params=["portable", "avx2", "avx512", EMULATED])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set that this machine and this build have, in turn, and the kernels for CUDA."""
    if request.param == EMULATED:
        library = request.getfixturevalue("cuda_on_the_cpu")
        monkeypatch.setattr(libraries, "cpu", lambda: libraries.Kernels(library))
        yield request.param
        return
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


@pytest.fixture
def _no_build_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables by which a build or an installation is told what to do."""
    for name in ("MOMENTUMNET_BUILD", "MOMENTUMNET_NATIVE", "MOMENTUMNET_CUDA_ARCHS", "CXX"):
        monkeypatch.delenv(name, raising=False)
