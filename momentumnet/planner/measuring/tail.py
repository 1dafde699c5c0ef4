"""What a step takes in backward behind its last unit: the loss and the rest of the model, run as they are in the step.

Single operations make temporaries that no graph tells of: `(a - b) ** 2` has three as large as its result in backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, saved_tensors_hooks
from torch.utils import _pytree as pytree

from momentumnet.memory import MemoryReport, memory_measured
from momentumnet.out_of_memory import is_out_of_memory
from momentumnet.planner.measuring.alone import gradients_there
from momentumnet.planner.measuring.step_loss import total_of
from momentumnet.planner.profiles.flow import PARAMETER


class _Cut(torch.autograd.Function):
    """The same tensor, and no view, so that code behind may write to it."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Tail:
    """A forward whose units keep nothing, and hand on tensors from which a graph begins.

    Args:
        model: that runs.
        units: names of the modules of each, in the order of their calls.
        present: whether gradients of parameters are there before.
    """

    def __init__(self, model: nn.Module, units: Sequence[Sequence[str]], *, present: bool) -> None:
        self._model, self._units, self._present = model, units, present
        self._within = 0  # how many units run
        self._left = sum(unit.count(unit[-1]) for unit in units)  # ends of units that are still to come
        self._leaves: list[Tensor] = []
        self._reports: list[MemoryReport] = []
        self._start = 0  # number of the first node behind the last unit
        self._behind = ExitStack()

    def measured(self, run: Callable[[], Any], loss: Callable[[Any], Tensor] | None) -> int | None:
        """Bytes that the backward behind the last unit takes at most, above what is held when it begins.

        None where it cannot be run by itself: it goes through a unit, whose output no cut has reached.
        """
        try:
            with self._looked_at(), saved_tensors_hooks(self._kept, _there):
                output = run()
                if self._left or self._within:
                    return None
                total = total_of(output, loss)
                if total.grad_fn is None:
                    return None
                torch.clear_autocast_cache()  # a backward stands behind autocast
                gradients = self._differentiated(total)
                self._behind.close()
                del gradients, output
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return None
        [report] = self._reports
        return max(0, report.backward_peak_bytes - report.saved_bytes)

    def _differentiated(self, total: Tensor) -> Any:
        if not self._present:
            return torch.autograd.grad(total, list(self._ends(total)), allow_unused=True)
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        with gradients_there(trained):
            return torch.autograd.backward(total, inputs=[*self._leaves, *trained])

    def _ends(self, total: Tensor) -> Iterator[GradientEdge]:
        """Where gradients leave what stands behind the last unit."""
        pending: list[Node] = [] if total.grad_fn is None else [total.grad_fn]
        seen: set[Any] = set(pending)
        while pending:
            for node, place in pending.pop().next_functions:
                if node is None or (node, place) in seen:
                    continue
                if node.name() == PARAMETER or node._sequence_nr() < self._start:
                    seen.add((node, place))
                    yield GradientEdge(node, place)
                elif node not in seen:
                    seen.add(node)
                    pending.append(node)

    @contextmanager
    def _looked_at(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._behind)
            for unit in dict.fromkeys(map(tuple, self._units)):
                first, last = self._model.get_submodule(unit[0]), self._model.get_submodule(unit[-1])
                stack.callback(first.register_forward_pre_hook(self._enter, prepend=True).remove)
                stack.callback(last.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, *_: object) -> None:
        self._within += 1

    def _leave(self, module: nn.Module, args: object, output: Any) -> Any:
        self._within -= 1
        self._left -= 1
        made = pytree.tree_map_only(Tensor, self._cut, output)
        if not self._left:
            self._start = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
            self._reports = self._behind.enter_context(memory_measured())
        return made

    def _cut(self, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        self._leaves.append(tensor.detach().requires_grad_())
        made: Tensor = _Cut.apply(self._leaves[-1])
        return made

    def _kept(self, tensor: Tensor) -> Tensor | None:
        return None if self._within else tensor.detach()


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("a gradient goes through a unit, which has kept nothing")
    return tensor
