"""What benchmarks/hollow_device.py says where it cannot run; the values it makes up are those of its device alone."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from momentumnet.arithmetic.reports import Reading, read

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _as_from_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands beside hollow_device.py is found, as where that is run."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def build() -> Any:
    return importlib.import_module("hollow_device_build")


@pytest.fixture
def kernels(build: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """csrc/build.py with a compiler, on a machine that has all that is needed."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/usr/bin/{name}")
    return SimpleNamespace(NotBuilt=FileNotFoundError, find_nvcc=lambda: "/bin/echo")


def test_a_compiler_of_another_version_is_named(build: Any, kernels: Any) -> None:
    with pytest.raises(build.Missing, match="needs nvcc of CUDA 13: /bin/echo is of no known version"):
        build.compiler(kernels)


def test_what_is_missing_is_named(build: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(build.Missing, match="needs gcc"):
        build.compiler(kernels)
    kernels.find_nvcc = lambda: (_ for _ in ()).throw(FileNotFoundError)
    with pytest.raises(build.Missing, match=r"needs nvcc of CUDA 13: none found \(CUDA_HOME, PATH"):
        build.compiler(kernels)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build.Missing, match="needs a PyTorch built for CUDA 13"):
        build.compiler(kernels)


def test_values_of_other_devices_are_read_as_they_are() -> None:
    values_of = Reading.values
    with importlib.import_module("hollow_device_values").made_up_values():
        values = torch.tensor([3.0, 0.5])
        assert read(values) == [3.0, 0.5]
        assert (float(values[1]), int(values[0]), bool(values[0])) == (0.5, 3, True)
        assert not torch.equal(values, values + 1)
    assert Reading.values is values_of


def test_the_script_finds_its_parts() -> None:
    assert importlib.import_module("hollow_device").build
