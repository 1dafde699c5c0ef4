"""What a training step takes behind its last unit: the rest of the model's forward, and the loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from momentumnet.memory import MemoryReport, memory_measured
from momentumnet.planner.alone import leaf_of, without_history
from momentumnet.planner.profile import Cost
from momentumnet.planner.step_loss import total_of
from momentumnet.recompute import object_copies
from momentumnet.streams.nested import tensors_inside

if TYPE_CHECKING:
    from momentumnet.planner.measure import Measures


@dataclass(frozen=True)
class Ending:
    """The loss, behind the last unit.

    Attributes:
        cost: what it takes.
        held: bytes of its own that it holds until backward.
        work: bytes that the model's forward takes behind the last unit, above what is left of them when it returns.
    """

    cost: Cost
    held: int
    work: int


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
    own = measures.cost(lambda: _loss_run(output, loss), [])

    def run() -> Tensor:
        total, _ = _loss_run(output, loss)
        return total

    with torch.enable_grad(), without_history():
        work = sum(report.peak_bytes - report.saved_bytes for reports in behind for report in reports)
        return Ending(own, measures.memory(run).saved_bytes, work)


def _loss_run(output: Any, loss: Callable[[Any], Tensor] | None) -> tuple[Tensor, list[Tensor]]:
    given = pytree.tree_map(lambda leaf: object_copies.copied(leaf, leaf_of), output)
    return total_of(given, loss), [leaf for leaf in tensors_inside(given) if leaf.requires_grad]
