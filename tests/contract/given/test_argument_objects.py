"""Objects of Python among the arguments of blocks: gradients where they are written to, and when they are freed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.outside.checkpoint import Checkpoint
from tests.contract.reference import loss_of
from tests.contract.stores import Cache, Cached, Memory, Reminded, Store, rows
from tests.models import WIDTH, Chain, ResidualMLP


def gradients(model: nn.Module, backward: str, *args: Any, **kwargs: Any) -> list[Tensor | None]:
    net = mn.convert(model, streams=["blocks"], backward=backward)
    loss_of(net(rows(), *args, **kwargs)).backward()
    return [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize(("block", "kind", "name"), [(Cached, Cache, "cache"), (Reminded, Memory, "memory")])
def test_an_argument_that_the_first_run_has_changed_gives_the_gradients_of_stored_activations(
    block: type[nn.Module], kind: type[Store], name: str, by_name: bool
) -> None:
    torch.manual_seed(0)
    model, found = Chain([block() for _ in range(3)]), []
    for backward in ("stored", "reversible"):
        found.append(gradients(model, backward, **{name: kind()}) if by_name else gradients(model, backward, kind()))
    torch.testing.assert_close(found[1], found[0])


class Graph:
    """An object of a program's own."""


class Writing(nn.Module):
    """Leaves what a block returned in an object that the blocks are given."""

    def __init__(self, blocks: list[nn.Module], write: Any) -> None:
        super().__init__()
        self.blocks, self.write = nn.ModuleList(blocks), write

    def forward(self, x: Tensor) -> Tensor:
        graph = Graph()
        self.seen = weakref.ref(graph)
        for block in self.blocks:
            x = block(x, graph)
            self.write(graph, x)
        return x


class Taking(ResidualMLP):
    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        return super().forward(x)


def in_list(graph: Graph, x: Tensor) -> None:
    graph.__dict__.setdefault("all", []).append({"h": x})


def in_another_object(graph: Graph, x: Tensor) -> None:
    graph.inner = Graph()
    graph.inner.h, graph.inner.outer = x, graph


WRITES = {
    "attribute": lambda graph, x: setattr(graph, "h", x),
    "list": in_list,
    "another object": in_another_object,
}


@contextmanager
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("write", WRITES)
def test_a_skipped_backward_frees_what_an_argument_object_holds(write: str) -> None:
    torch.manual_seed(0)
    net = mn.convert(Writing([Taking() for _ in range(3)], WRITES[write]), streams=["blocks"])
    handed: list[weakref.ref[Tensor]] = []
    net.blocks[1].register_forward_pre_hook(lambda _, args: handed.append(weakref.ref(args[0])))
    with no_collection():
        for _ in range(3):
            loss = loss_of(net(rows()))
            del loss
            if write == "another object":
                gc.collect()  # the program's own cycle
            assert net.seen() is None
            assert handed[-1]() is None


def test_an_object_that_gets_the_last_output_is_freed_with_the_loss() -> None:
    class AtTheEnd(Writing):
        def forward(self, x: Tensor) -> Tensor:
            graph = Graph()
            self.seen = weakref.ref(graph)
            for block in self.blocks:
                x = block(x, graph)
            graph.h = x
            return x

    torch.manual_seed(0)
    net = mn.convert(AtTheEnd([Taking() for _ in range(3)], None), streams=["blocks"])
    with no_collection():
        loss_of(net(rows()))
        assert net.seen() is None


def test_an_object_given_to_a_module_outside_the_streams_is_freed_with_the_loss() -> None:
    class Head(nn.Module):
        """Recomputed from its arguments; what it returns goes into one of them."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, graph: Graph) -> Tensor:
            return self.second(self.first(x).tanh())

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = nn.Sequential(ResidualMLP(), ResidualMLP()), Head()

        def forward(self, x: Tensor) -> Tensor:
            graph = Graph()
            self.seen = weakref.ref(graph)
            graph.h = self.head(self.blocks(x), graph)
            return graph.h

    torch.manual_seed(0)
    net = Behind()
    net.blocks = mn.convert(net.blocks, streams=[""])
    checkpoint = Checkpoint()
    head, call = net.head, net.head.forward
    head.forward = lambda *args: checkpoint.call("head", head, call, args, {})  # type: ignore[method-assign]
    with no_collection():
        loss_of(net(rows()))
        assert net.seen() is None


@pytest.mark.parametrize("alive", [True, False])
def test_gradients_with_an_object_that_is_written_between_blocks(alive: bool) -> None:
    """The recompute gets what it was, whether or not somebody holds it any more."""

    class Reading(ResidualMLP):
        def forward(self, x: Tensor, graph: Graph) -> Tensor:
            return x + graph.factor * self.inner(x)

    held = []

    def write(graph: Graph, x: Tensor) -> None:
        graph.h = x
        held.append(graph if alive else None)

    class Given(Writing):
        def forward(self, x: Tensor) -> Tensor:
            graph = Graph()
            graph.factor, graph.h = torch.full((WIDTH,), 0.9), x
            for block in self.blocks:
                x = block(x, graph)
                self.write(graph, x)
                graph.factor = 0.8 * graph.factor
            return x

    torch.manual_seed(0)
    model = Given([Reading() for _ in range(3)], write)
    torch.testing.assert_close(gradients(model, "reversible"), gradients(model, "stored"))
