"""An exception in a recompute names block, stream and likely cause; what is no fault of the block stays as it is."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import loss_of
from tests.contract.stores import Memory, Reminded, Store, Uncopyable, rows
from tests.models import Chain, ResidualMLP
from tests.tally import Tally


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
