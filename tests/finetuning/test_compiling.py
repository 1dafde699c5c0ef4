from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.bench.measuring import compiled as bench_compiled
from momentumnet.command_errors import MachineError
from momentumnet.finetuning.compiling import block_names, compiled


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x).tanh()


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Block(), Block(), nn.Linear(4, 2))
    return mn.convert(model, torch.randn(2, 4), gamma=0.5), model


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    network(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def test_the_blocks_of_both_networks_are_compiled_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def each(blocks: Iterable[nn.Module]) -> None:
        for block in blocks:
            block.compile(backend=backend, dynamic=False)

    monkeypatch.setattr(bench_compiled, "compile_each", each)
    converted, stock = networks()
    x = torch.randn(3, 4)
    expected = [gradients(network, x) for network in (converted, stock)]
    names = block_names(converted)
    assert names == ["1", "2"]
    with compiled([converted, stock], names):
        for network, plain in zip((converted, stock), expected, strict=True):
            graphs.clear()
            for found, value in zip(gradients(network, x), plain, strict=True):
                torch.testing.assert_close(found, value, rtol=0, atol=0)
            assert graphs
            assert all("tanh" in graph.code for graph in graphs)


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: object) -> None:
        raise RuntimeError("no C++ compiler")

    def each(blocks: Iterable[nn.Module]) -> None:
        for block in blocks:
            block.compile(backend=backend)

    monkeypatch.setattr(bench_compiled, "compile_each", each)
    converted, stock = networks()
    with pytest.raises(MachineError, match=r"--compile: torch\.compile failed .*leave it out"):
        with compiled([stock], block_names(converted)):
            stock(torch.randn(3, 4))
