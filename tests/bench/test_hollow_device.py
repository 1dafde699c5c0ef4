"""What benchmarks/hollow_device.py says where it cannot run; the values it makes up are those of its device alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from momentumnet.arithmetic.reports import Reading, read

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "hollow_device.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("hollow_device_script", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kernels(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """csrc/build.py with a compiler, on a machine that has all that is needed."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(script.shutil, "which", lambda name: f"/usr/bin/{name}")
    return SimpleNamespace(NotBuilt=FileNotFoundError, find_nvcc=lambda: "/bin/echo")


def test_a_compiler_of_another_version_is_named(script: Any, kernels: Any) -> None:
    with pytest.raises(script.Missing, match="needs nvcc of CUDA 13: /bin/echo is of no known version"):
        script.compiler(kernels)


def test_what_is_missing_is_named(script: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(script.Missing, match="needs gcc"):
        script.compiler(kernels)
    kernels.find_nvcc = lambda: (_ for _ in ()).throw(FileNotFoundError)
    with pytest.raises(script.Missing, match=r"needs nvcc of CUDA 13: none found \(CUDA_HOME, PATH"):
        script.compiler(kernels)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(script.Missing, match="needs a PyTorch built for CUDA 13"):
        script.compiler(kernels)


def test_values_of_other_devices_are_read_as_they_are(script: Any) -> None:
    values_of = Reading.values
    with script.made_up_values():
        values = torch.tensor([3.0, 0.5])
        assert read(values) == [3.0, 0.5]
        assert (float(values[1]), int(values[0]), bool(values[0])) == (0.5, 3, True)
        assert not torch.equal(values, values + 1)
    assert Reading.values is values_of
