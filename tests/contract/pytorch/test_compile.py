"""Contract line 12: compiled blocks, compiled models, and the accelerator."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import momentumnet as mn
from tests.contract import double_streams
from tests.contract.reference import assert_same, pair, relative_error, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("when", ["before conversion", "after conversion", "in place"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_blocks(when: str, backend: str) -> None:
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler, and this machine has none")
    torch.manual_seed(0)
    chain, x = Chain([ResidualMLP() for _ in range(2)]), torch.randn(5, WIDTH)
    outcomes = []
    for backward in ("stored", "reversible"):
        torch._dynamo.reset()
        if when == "before conversion":
            compiled = Chain([torch.compile(block, backend=backend) for block in chain.blocks])
            compiled.stem, compiled.head = chain.stem, chain.head
            net = mn.convert(compiled, (x,), backward=backward)
        else:
            net = mn.convert(chain, (x,), backward=backward)
            for index, block in enumerate(net.blocks):
                if when == "in place":
                    block.compile(backend=backend)
                else:
                    net.blocks[index] = torch.compile(block, backend=backend)
        outcomes.append(train_step(net, (x,)))
    assert_same(outcomes[1], outcomes[0])
    plain = train_step(mn.convert(chain, (x,), backward="stored"), (x,))
    torch.testing.assert_close(outcomes[1].output, plain.output, rtol=1e-4, atol=1e-5)


def test_block_compiled_in_place_runs_compiled() -> None:
    graphs: list[torch.fx.GraphModule] = []
    net = mn.convert(Chain([ResidualMLP() for _ in range(2)]), streams=["blocks"])

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    for block in net.blocks:
        block.compile(backend=backend)
    net(torch.randn(5, WIDTH)).sum().backward()
    assert graphs


@cache
def _compiles_layers() -> bool:
    """Whether a module of ``torch.nn`` may be compiled by itself: PyTorch 2.11 runs it as it is."""
    graphs: list[torch.fx.GraphModule] = []
    layer = nn.Linear(2, 2)
    layer.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    layer(torch.zeros(1, 2))
    return bool(graphs)


def needs_compiled_layers() -> None:
    if not _compiles_layers():
        pytest.skip("this version of PyTorch compiles no module of torch.nn by itself")


@pytest.mark.parametrize("depth", [3, 6])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_blocks_that_are_compiled_one_by_one_have_no_graph_break(depth: int, dropout: float) -> None:
    """Regional compilation: equal blocks share their graphs, and the recompute runs the same ones."""
    needs_compiled_layers()
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True, dropout=dropout)
    x = torch.randn(2, 5, WIDTH)
    net = mn.convert(nn.TransformerEncoder(layer, depth, enable_nested_tensor=False), x)
    for block in net.layers:
        block.compile(backend="aot_eager")
    counters.clear()
    for _ in range(2):
        net(x).square().mean().backward()
        assert not counters["graph_break"]
        # One for the first block, whose input needs no gradient, and one for the others.
        assert counters["stats"]["unique_graphs"] == 2


class NormedMLP(nn.Module):
    """x + W2 relu(batch norm(W1 x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.leave(torch.relu(self.norm(self.enter(x))))


class Widths(nn.Module):
    """Blocks of several widths, as a ResNet's: each width takes graphs of its own."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        widths = [WIDTH + 2 * place for place in range(count)]
        self.stages = nn.ModuleList([nn.Sequential(*[NormedMLP(width) for _ in range(3)]) for width in widths])
        self.changes = nn.ModuleList([nn.Linear(width, width + 2) for width in widths])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage, change in zip(self.stages, self.changes, strict=True):
            x = change(stage(x))
        return x

    def compiled(self, where: str) -> Widths:
        for stage in self.stages:
            for place, block in enumerate(stage):
                if where == "block":
                    block.compile(backend="aot_eager")
                elif where == "wrapped":
                    stage[place] = torch.compile(block, backend="aot_eager")
                else:
                    block.norm.compile(backend="aot_eager")
        return self


@pytest.mark.parametrize("where", ["block", "wrapped", "norm"])
@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
def test_recomputes_of_blocks_with_batch_norms_run_the_same_graphs(backward: str, where: str) -> None:
    """Graphs of their own would not be made where as many as Dynamo allows are there after forward."""
    if where == "norm":
        needs_compiled_layers()
    torch.manual_seed(0)
    net, x = Widths(), torch.randn(5, WIDTH)
    outcomes = []
    for way in ("stored", backward):
        torch._dynamo.reset()
        if where == "wrapped":  # before conversion, as blocks are that somebody has compiled already
            converted = mn.convert(copy.deepcopy(net).compiled(where), x, backward=way)
        else:
            converted = mn.convert(net, x, backward=way).compiled(where)
        counters.clear()
        outcomes.append([train_step(converted, (x,)) for _ in range(2)])
        assert counters["stats"]["unique_graphs"] == 4  # one for each width
    for expected, got in zip(*outcomes, strict=True):
        assert_same(got, expected)


class Broken(nn.Module):
    """A block that Dynamo compiles in pieces: between them operations run as they are, and save what they save."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        # An average over all batches reads the number of these, where a graph ends.
        self.enter, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width, momentum=None)
        self.leave = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.enter(x))
        order = y.detach().sum(1).argsort()
        torch._dynamo.graph_break()
        return x + self.leave(y[order])


@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
def test_compiled_blocks_with_graph_breaks(backward: str) -> None:
    """Dynamo does not compile what looks at the saved tensors: it would read their counters once and for all."""
    torch.manual_seed(0)
    net, x, outcomes = Chain([Broken() for _ in range(3)]), torch.randn(5, WIDTH), []
    for way in ("stored", backward):
        torch._dynamo.reset()
        converted = mn.convert(net, x, backward=way)
        for block in converted.blocks:
            block.compile(backend="aot_eager")
        outcomes.append([train_step(converted, (x,)) for _ in range(3)])
    for expected, got in zip(*outcomes, strict=True):
        assert_same(got, expected)


@torch._dynamo.config.patch(recompile_limit=1)
def test_a_recompute_that_is_not_compiled_any_more_is_explained() -> None:
    net, x = mn.convert(Widths(1), torch.randn(5, WIDTH)), torch.randn(5, WIDTH)
    loss = net.compiled("block")(x).square().mean()
    torch._dynamo.reset()
    net.stages[0][0](torch.randn(7, WIDTH))  # its graph is the only one that there may be now
    with pytest.raises(mn.ReconstructionError, match=r"compiled: its recompute may have run another .*recompile_limit"):
        loss.backward()


def test_compiled_model_is_correct(case: Case) -> None:
    stored, reversible = pair(case)
    expected = train_step(stored, case.example())
    compiled = torch.compile(reversible, backend="aot_eager")
    got = train_step(compiled, case.example())
    assert sorted(got.gradients) == sorted(f"_orig_mod.{n}" if "input" not in n else n for n in expected.gradients)
    got.gradients = {name.removeprefix("_orig_mod."): grad for name, grad in got.gradients.items()}
    torch.testing.assert_close(got.output, expected.output, rtol=1e-4, atol=1e-5)
    assert relative_error(got, expected) < 1e-5


class Unrolled(double_streams.Net):
    """Without a loop: Dynamo leaves a function that breaks in a loop as it is, and would compile nothing here."""

    def __init__(self) -> None:
        super().__init__(depth=2)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        image, text = self.stems[0](image), self.stems[1](text)
        image, text = self.blocks[0](image, text)
        image, text = self.blocks[1](image, text)
        return self.head(torch.cat([image, text], 1))


@pytest.mark.parametrize("what", ["blocks", "model"])
def test_blocks_that_change_two_streams(what: str) -> None:
    """Image and text are one state, of which graphs in the blocks and between them are given views."""
    example, found = double_streams.both(), []
    for backward in ("stored", "reversible"):
        torch._dynamo.reset()
        counters.clear()
        net = mn.convert(Unrolled(), example, gamma=1 / 8, backward=backward)
        for module in net.blocks if what == "blocks" else [net]:
            module.compile(backend="aot_eager")
        found.append(double_streams.gradients(net))
        assert counters["stats"]["unique_graphs"] == (1 if what == "blocks" else 2)  # the blocks'; before and behind
        assert what == "model" or not counters["graph_break"]
    plain = double_streams.gradients(mn.convert(Unrolled(), example, gamma=1 / 8, backward="stored"))
    double_streams.assert_same_gradients(found[1], found[0])
    torch.testing.assert_close(found[1], plain, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_cuda(case: Case) -> None:
    stored, reversible = (net.cuda() for net in pair(case))
    example = tuple(x.cuda() for x in case.example())
    states = []
    for net in (stored, reversible):
        torch.cuda.manual_seed(4)
        states.append((train_step(net, example), torch.cuda.get_rng_state()))
    assert_same(states[1][0], states[0][0])
    assert torch.equal(states[1][1], states[0][1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_cuda(case: Case, dtype: torch.dtype) -> None:
    outcomes = []
    for net in pair(case):
        net = net.cuda()
        forward = net.forward

        def inside(*inputs: torch.Tensor, forward=forward) -> torch.Tensor:
            with torch.autocast("cuda", dtype=dtype):
                return forward(*inputs)

        net.forward = inside
        torch.cuda.manual_seed(4)
        outcomes.append(train_step(net, tuple(x.cuda() for x in case.example())))
    assert_same(outcomes[1], outcomes[0])


def test_module_list_of_compiled_blocks_keeps_its_keys() -> None:
    chain = Chain([ResidualMLP() for _ in range(2)])
    net = mn.convert(chain, (torch.randn(5, WIDTH),))
    for block in net.blocks:
        assert isinstance(block, nn.Module)
        block.compile(backend="aot_eager")
    assert list(net.state_dict()) == list(chain.state_dict())
