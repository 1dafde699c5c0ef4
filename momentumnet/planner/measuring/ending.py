"""What a training step takes behind its last unit: the rest of the model's forward, and the loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from momentumnet.memory import MemoryReport, memory_measured
from momentumnet.planner.measuring.alone import differentiate, leaf_of, without_history
from momentumnet.planner.measuring.step_loss import total_of
from momentumnet.planner.measuring.unit_cost import Measures
from momentumnet.planner.profiles.unit import Cost
from momentumnet.recompute.values import object_copies
from momentumnet.streams.blocks.nested import tensors_inside


@dataclass(frozen=True)
class Ending:
    """The loss, behind the last unit.

    Attributes:
        cost: what it takes.
        held: bytes of its own that it holds until backward.
        work: bytes that the model's forward takes behind the last unit, above what is left of them when it returns.
        reached: of the tensors in the output, in order, whether the loss hands a gradient to them.
        backward: bytes that backward takes at most in the loss and in what stands behind the last unit, above what is
            held when it begins; None where that was not measured as one.
    """

    cost: Cost
    held: int
    work: int
    reached: tuple[bool, ...] = ()
    backward: int | None = None


def nth(number: int, counts: Callable[[], bool]) -> Callable[[], bool]:
    """Whether one is asked for the nth time, of the times that count: a unit may run several times in a forward."""
    times = itertools.count(1)
    return lambda: counts() and next(times) == number


@contextmanager
def measured_behind(module: nn.Module, has_come: Callable[[], bool]) -> Iterator[list[list[MemoryReport]]]:
    """Gets the report of what a forward does behind a call of the module, once that has come."""
    found: list[list[MemoryReport]] = []
    with ExitStack() as rest:

        def leave(*_: object) -> None:
            if not found and has_come():
                rest.enter_context(without_history())
                found.append(rest.enter_context(memory_measured()))

        rest.callback(module.register_forward_hook(leave).remove)
        yield found


def ending_of(
    measures: Measures, output: Any, loss: Callable[[Any], Tensor] | None, behind: Sequence[Sequence[MemoryReport]]
) -> Ending:
    """The loss of an output, and what was measured in the forward behind the last unit."""
    own = measures.cost(lambda: _loss_run(output, loss)[:2], [])

    def run() -> Tensor:
        return _loss_run(output, loss)[0]

    with torch.enable_grad(), without_history():
        work = sum(report.peak_bytes - report.saved_bytes for reports in behind for report in reports)
        return Ending(own, measures.memory(run).saved_bytes, work, _reached(output, loss))


def _reached(output: Any, loss: Callable[[Any], Tensor] | None) -> tuple[bool, ...]:
    total, leaves, made = _loss_run(output, loss)
    gradients = dict(zip(map(id, leaves), differentiate(total, leaves) or (), strict=False))
    return tuple(gradients.get(id(made[id(tensor)])) is not None for tensor in tensors_inside(output))


def _loss_run(output: Any, loss: Callable[[Any], Tensor] | None) -> tuple[Tensor, list[Tensor], dict[int, Tensor]]:
    """The loss, the leaves that it came from, and what stands in the output's tensors' place, by their identity."""
    made: dict[int, Tensor] = {}

    def of(tensor: Tensor) -> Tensor:
        return made.setdefault(id(tensor), leaf_of(tensor))

    given = pytree.tree_map(lambda leaf: object_copies.copied(leaf, of), output)
    total = total_of(given, loss)
    return total, [leaf for leaf in made.values() if leaf.requires_grad], made
