"""The CUDA library's kernels on the CPU: the walk of `momentumnet doctor`, also where memory is not aligned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import momentumnet as mn
from momentumnet.arithmetic import self_check
from momentumnet.arithmetic.compiled import libraries
from tests.arithmetic.compiled.emulation import OnDeviceZero
from tests.arithmetic.compiled.grid import launched_off_the_grid
from tests.arithmetic.compiled.sources import ROOT
from tests.models import WIDTH, ResidualMLP

CPU = torch.device("cpu")


@pytest.fixture
def _emulated(cuda_on_the_cpu: OnDeviceZero, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "cpu", lambda: libraries.Kernels(cuda_on_the_cpu))  # type: ignore[arg-type]


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("device", [0, 1])
def test_a_kernel_runs_on_its_device_and_leaves_the_current_one(
    device: int, current: int, cuda_on_the_cpu: OnDeviceZero
) -> None:
    library, report = cuda_on_the_cpu.library, torch.empty(2, dtype=torch.int64)
    library.emulated_make_current(current)
    try:
        assert not library.mn_probe(device)
        assert library.emulated_device() == current
        assert not library.mn_look(libraries.Look(), 0, device, 0, report.data_ptr())
        assert (library.emulated_launched_on(), library.emulated_device()) == (device, current)
    finally:
        library.emulated_make_current(0)


@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize("elements", [3, 1027, 9001])
def test_the_walk_of_the_doctor(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "ELEMENTS", elements)
    monkeypatch.setattr(self_check, "SPECIAL", self_check.SPECIAL[:elements])
    assert self_check.difference(CPU) == ""


@pytest.mark.usefixtures("_emulated")
def test_tensors_that_cannot_be_read_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = launched_off_the_grid(monkeypatch)
    monkeypatch.setattr(self_check, "ELEMENTS", 4099)
    assert self_check.difference(CPU) == ""
    assert launched | {"mn_look"} == set(libraries._FUNCTIONS)  # which takes any alignment


def trained(model: nn.Module, x: Tensor, *, autocast: bool) -> list[Tensor]:
    """Output and gradients of a converted network."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        net = mn.convert(model, x, gamma=1 / 8, others="checkpoint").train()
        output = net(x)
    output.float().square().sum().backward()
    return [output.detach(), *(parameter.grad for parameter in net.parameters())]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "resnet18"])
def test_a_network_has_the_bits_of_the_kernels_for_the_cpu(
    name: str, cuda_on_the_cpu: OnDeviceZero, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = resnet18() if name == "resnet18" else nn.Sequential(*[ResidualMLP() for _ in range(6)])
    x = torch.randn(2, 3, 40, 40) if name == "resnet18" else torch.randn(37, WIDTH)
    expected = trained(model, x, autocast=name == "bfloat16")
    monkeypatch.setattr(libraries, "cpu", lambda: libraries.Kernels(cuda_on_the_cpu))  # type: ignore[arg-type]
    found = trained(model, x, autocast=name == "bfloat16")
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("line", "instead", "why"),
    [
        ("__syncthreads();", "if (threadIdx.x) __syncthreads();", "all that have not ended wait for others"),
        ("if (threadIdx.x >= 32) return;", "if (threadIdx.x >= 8) return;", "ended while others wait for it"),
    ],
)
def test_what_is_undefined_on_a_gpu_ends_the_process(line: str, instead: str, why: str, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
import torch
from momentumnet.arithmetic import self_check
from momentumnet.arithmetic.compiled import libraries
from tests.arithmetic.compiled.emulation import OnDeviceZero, emulated_cuda

library = OnDeviceZero(emulated_cuda(Path({str(tmp_path)!r}), line={line!r}, instead={instead!r}))
libraries.cpu = lambda: libraries.Kernels(library)
self_check.ELEMENTS = 1027
self_check.difference(torch.device("cpu"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode < 0, done.stderr
    assert why in done.stderr
