"""A CUDA library serves the GPUs that it holds code for; tensors on others go through plain PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

import momentumnet as mn
from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled import libraries, selection


class OtherGpu:
    """A library without code for the second GPU."""

    def mn_probe(self, index: int) -> int:
        return 209 if index == 1 else 0

    def mn_error(self, status: int) -> bytes:
        return b"no kernel image is available" if status == 209 else b"?"


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(libraries, "cuda", lambda: libraries.Kernels(OtherGpu()))  # type: ignore[arg-type]
    libraries.on_cuda.cache_clear()
    yield
    libraries.on_cuda.cache_clear()


@pytest.mark.usefixtures("_two_gpus")
def test_a_gpu_that_the_library_has_no_code_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "momentumnet"):
        for _ in range(2):
            assert selection.for_device(torch.device("cuda", 1)) is momentum_step
            assert isinstance(selection.for_device(torch.device("cuda", 0)), selection.NativeStep)
    (warning,) = caplog.records
    assert mn.native.available("cuda:0")
    assert not mn.native.available("cuda:1")
    reason = mn.native.reason("cuda:1")
    assert reason.startswith("libmomentumnet_cuda.so does not run on cuda:1: no kernel image is available; ")
    assert libraries.HOW_TO_BUILD in reason
    assert reason in warning.message


def test_without_a_library_its_reason_is_that_of_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "cuda", lambda: libraries.Kernels(None, "for a test"))
    libraries.on_cuda.cache_clear()
    assert libraries.on_cuda(3).reason == mn.native.reason("cuda:3") == "for a test"
    libraries.on_cuda.cache_clear()
