"""The CUDA kernels on a GPU, against plain operations; ``benchmarks/gpu_check.sh sanitizer`` watches these tests."""

from __future__ import annotations

import pytest
import torch

from momentumnet.arithmetic import self_check
from momentumnet.arithmetic.compiled import libraries
from tests.arithmetic.compiled.grid import launched_off_the_grid

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("elements", [3, 1027, 40_001])
def test_the_walk_of_the_doctor(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "ELEMENTS", elements)
    monkeypatch.setattr(self_check, "SPECIAL", self_check.SPECIAL[:elements])
    assert self_check.difference(gpu()) == ""


def test_tensors_that_cannot_be_read_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = launched_off_the_grid(monkeypatch)
    assert self_check.difference(gpu()) == ""
    assert launched | {"mn_look"} == set(libraries._FUNCTIONS)  # which takes any alignment


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("index", [0, 1])
def test_a_gpu_that_is_not_the_current_one(index: int, current: int) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(current):
        assert self_check.difference(torch.device("cuda", index)) == ""
        assert torch.cuda.current_device() == current
