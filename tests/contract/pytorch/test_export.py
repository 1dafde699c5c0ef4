"""Compiled for sizes that change, exported, and compiled ahead of time: a converted network as it is used elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def rows(*sizes: int) -> Tensor:
    return torch.randn(*sizes, WIDTH, generator=torch.Generator().manual_seed(1))


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    net.zero_grad()
    (net(x) - torch.ones_like(x)).square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None])


def test_a_model_compiled_for_sizes_that_change() -> None:
    model = encoder()
    stored = mn.convert(model, rows(2, 5), gamma=0.5, backward="stored").train()
    net = mn.convert(model, rows(2, 5), gamma=0.5).train()
    compiled = torch.compile(net, backend="aot_eager", dynamic=True)
    for sizes in ((2, 5), (3, 7), (4, 6)):
        torch.testing.assert_close(gradient(compiled, rows(*sizes)), gradient(stored, rows(*sizes)))


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_a_network_compiled_ahead_of_time(tmp_path: Path) -> None:
    net = mn.convert(encoder(), rows(2, 5), gamma=0.5).eval()
    with torch.no_grad():
        exported = torch.export.export(net, (rows(2, 5),), strict=False)
        path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "net.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(rows(2, 5)), net(rows(2, 5)))
