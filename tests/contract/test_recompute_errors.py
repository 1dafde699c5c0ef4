"""An exception in a recompute names block, stream and likely cause; what is no fault of the block stays as it is."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.checkpoint import Checkpoint
from tests.contract.reference import loss_of
from tests.models import WIDTH, Chain, ResidualMLP
from tests.tally import Tally


def rows() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


class Store:
    """Keys, appended to, as caches in decoders are."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}

    def update(self, layer: int, key: Tensor) -> Tensor:
        before = self.keys.get(layer)
        self.keys[layer] = key if before is None else torch.cat([before, key])
        return self.keys[layer]


class Cache(Store):
    """A cache by its name."""


class Memory(Store):
    """Not named as a cache."""


class Uncopyable(Store):
    def __copy__(self) -> Store:
        raise TypeError("no copies")


class Cached(ResidualMLP):
    def forward(self, x: Tensor, cache: Store) -> Tensor:
        return x + torch.tanh(self.inner(x) * cache.update(id(self), x))


class Reminded(ResidualMLP):
    def forward(self, x: Tensor, memory: Store) -> Tensor:
        return x + torch.tanh(self.inner(x) * memory.update(id(self), x))


class Broken(ResidualMLP):
    """Raises when it is called for the second time."""

    error: BaseException = ValueError("not again")

    def __init__(self) -> None:
        super().__init__()
        self.calls = Tally([0])

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        if self.calls[0] == 2:
            raise self.error
        return super().forward(x)


def broken(error: BaseException, place: int = 1) -> nn.Module:
    torch.manual_seed(0)
    net = mn.convert(Chain([Broken() if i == place else ResidualMLP() for i in range(3)]), streams=["blocks"])
    net.blocks[place].error = error
    return net


@pytest.mark.parametrize("error", [ValueError("not again"), RuntimeError("shapes"), AssertionError(), KeyError("k")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_exception_in_a_recompute(error: Exception, place: int) -> None:
    loss = loss_of(broken(error, place)(rows()))
    with pytest.raises(mn.ReconstructionError, match=rf"block 'blocks\.{place}' of stream 'blocks' raised") as caught:
        loss.backward()
    assert type(error).__name__ in str(caught.value)
    assert str(error) in str(caught.value)
    assert caught.value.__cause__ is error


CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError(CPU), KeyboardInterrupt()]
)
def test_what_is_no_fault_of_the_block_stays_as_it_is(error: BaseException) -> None:
    loss = loss_of(broken(error)(rows()))
    with pytest.raises(type(error)) as caught:
        loss.backward()
    assert caught.value is error


def test_an_exception_outside_the_streams() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(ResidualMLP(), ResidualMLP())
    for error in (ValueError("not again"), MemoryError()):
        net = mn.convert(nn.Sequential(Broken(), blocks), rows(), streams=["1"], others="checkpoint")
        net[0].calls, net[0].error = Tally([0]), error
        loss = loss_of(net(rows()))
        with pytest.raises((mn.ReconstructionError, MemoryError)) as caught:
            loss.backward()
        if isinstance(error, MemoryError):
            assert caught.value is error
        else:
            assert caught.value.__cause__ is error
            assert "module '0' raised ValueError" in str(caught.value)
            assert "others='keep'" in str(caught.value)


def test_an_exception_in_a_stream_inside_a_block() -> None:
    class Outer(ResidualMLP):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(ResidualMLP(), Broken())

    torch.manual_seed(0)
    net = mn.convert(Chain([Outer(), ResidualMLP()]), streams=["blocks", "blocks.0.inner"])
    with pytest.raises(mn.ReconstructionError, match=r"raised ValueError.*not again"):
        loss_of(net(rows())).backward()


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


@pytest.mark.parametrize("by_name", [False, True])
def test_an_argument_that_the_first_run_has_changed_and_that_cannot_be_copied_is_named(by_name: bool) -> None:
    torch.manual_seed(0)
    net, memory = mn.convert(Chain([Reminded() for _ in range(3)]), streams=["blocks"]), Uncopyable()
    output = net(rows(), memory=memory) if by_name else net(rows(), memory)
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.2.*changed its argument 'memory' \(Uncopyable\)"):
        loss_of(output).backward()


@pytest.mark.parametrize("kind", [Memory, Uncopyable])
def test_an_argument_that_no_run_has_changed_is_not_suspected(kind: type[Store]) -> None:
    class Reading(Broken):
        def forward(self, x: Tensor, memory: Store) -> Tensor:
            return super().forward(x) + len(memory.keys)

    torch.manual_seed(0)
    net = mn.convert(Chain([Reading() for _ in range(2)]), streams=["blocks"])
    with pytest.raises(mn.ReconstructionError) as caught:
        loss_of(net(rows(), kind())).backward()
    assert "argument 'memory'" not in str(caught.value)


class Recurrent(ResidualMLP):
    """Goes on from what its last call has left, as RecurrentGemma's blocks do with a cache."""

    state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        before, self.state = self.state, self.inner(x)
        return x + (self.state if before is None else self.state + 0.1 * before)


def test_an_attribute_that_holds_what_a_call_has_computed_is_named() -> None:
    torch.manual_seed(0)
    net = mn.convert(Chain([Recurrent() if i == 1 else ResidualMLP() for i in range(3)]), streams=["blocks"])
    loss = loss_of(net(rows())) + loss_of(net(2 * rows()))
    with pytest.raises(mn.ReconstructionError, match=r"attribute \(blocks\.1\.state holds tensors.*use_cache=False"):
        loss.backward()
    loss = loss_of(broken(ValueError("not again"))(rows()))
    with pytest.raises(mn.ReconstructionError, match="a Python attribute, a global"):
        loss.backward()


def test_threads_that_draw_are_told_that_they_share_generators() -> None:
    """Another thread draws between a block's forward and what it draws itself."""

    class Drawing(ResidualMLP):
        meeting: Any = None

        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(super().forward(x), 0.3)
            if self.meeting is not None:
                self.meeting()
            return F.dropout(y, 0.3)

    torch.manual_seed(0)
    nets = [mn.convert(nn.Sequential(*[Drawing() for _ in range(3)]), streams=[""]) for _ in range(2)]

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: nets[1](rows()))
        thread.start()
        thread.join()

    nets[0][1].meeting = elsewhere
    output = nets[0](rows())
    nets[0][1].meeting = None
    with pytest.raises(mn.ReconstructionError, match="threads share torch's generators"):
        output.sum().backward()


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


class Force(ResidualMLP):
    """Takes a gradient in its forward: a force, an inner step."""

    skip = 1

    def forward(self, x: Tensor) -> Tensor:
        given = x if x.requires_grad else x.detach().requires_grad_()
        energy = super().forward(given).square().sum()
        (force,) = torch.autograd.grad(energy, given, create_graph=True)
        return x + 0.1 * force if self.skip else force.sum(1, keepdim=True)


class ForceAlone(Force):
    skip = 0


@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
def test_a_block_that_takes_a_gradient_in_its_forward_is_told_so(backward: str) -> None:
    model, x = nn.Sequential(*[Force(8) for _ in range(3)]), torch.randn(4, 8)
    net = mn.convert(model, x, backward=backward)
    with pytest.raises(mn.ReconstructionError, match=r"takes a gradient in its own forward .*backward='stored'"):
        net(x)
    mn.convert(model, x, backward="stored")(x).sum().backward()


def test_so_is_a_module_outside_the_streams() -> None:
    model, x = nn.Sequential(ResidualMLP(8), ResidualMLP(8), nn.Linear(8, 6), ForceAlone(6)), torch.randn(4, 8)
    net = mn.convert(model, x, others="checkpoint")
    with pytest.raises(mn.ReconstructionError, match=r"takes a gradient in its own forward .*others='keep'"):
        net(x)
    mn.convert(model, x)(x).sum().backward()


@pytest.mark.parametrize("options", [{"backward": "reversible"}, {"backward": "checkpointed"}], ids=str)
@pytest.mark.parametrize("when", ["added", "removed"])
def test_hooks_that_came_or_went_since_the_forward_are_named(when: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = mn.convert(Chain([ResidualMLP() for _ in range(3)]), rows(), **options)

    def steer() -> Any:
        return net.blocks[1].inner.register_forward_hook(lambda module, args, output: output * 1.5)

    handle = steer() if when == "removed" else None
    loss = loss_of(net(rows()))
    if handle is not None:
        handle.remove()
    else:
        steer()
    with pytest.raises(mn.ReconstructionError, match=r"forward hooks of 'blocks\.1\.inner' have been added or removed"):
        loss.backward()
