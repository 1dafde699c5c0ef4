"""Measuring a call on tensors without values: bytes by the life of their storages, time by counts of operations.

What kernels take beside tensors (a convolution's work space) is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from momentumnet.memory import MemoryReport
from momentumnet.streams.blocks.nested import tensors_in

# A device that there is not: what it multiplies and adds, and what it moves, in a second.
OPERATIONS_A_SECOND = 1e14
BYTES_A_SECOND = 1e12


def without_values(model: nn.Module, example_inputs: Any) -> bool:
    """Whether the model or its example is on the meta device, or of fake tensors."""
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(example_inputs)]
    return any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in tensors)


@contextmanager
def hollowed(model: nn.Module, example_inputs: Any) -> Iterator[tuple[Any, list[Tensor]]]:
    """The example as fake tensors, and all that was there before the step, where they are in force."""
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(example_inputs)]
    modes = [tensor.fake_mode for tensor in tensors if isinstance(tensor, FakeTensor)]
    with ExitStack() as stack:
        mode = stack.enter_context(modes[0] if modes else FakeTensorMode(allow_non_fake_inputs=True))
        before: list[Tensor] = [mode.from_tensor(tensor) for tensor in tensors]
        yield pytree.tree_map_only(Tensor, mode.from_tensor, example_inputs), before


class HollowMeasures(TorchDispatchMode):
    """What calls on fake tensors take.

    Args:
        before: tensors that were there before.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        # Those of parameters, which are seen through fake twins; the others are told by being handed in.
        self._parameters = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in before}
        self._before: dict[int, Any] = {}
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._total = self._peak = self._behind_peak = 0
        self._saved: int | None = None
        self._seconds = 0.0

    def memory(self, call: Callable[[], object]) -> MemoryReport:
        """As `momentumnet.measure_memory`."""
        self._begin()
        with self:
            result = call()
        report = MemoryReport(self._peak, self._total if self._saved is None else self._saved, self._behind_peak)
        del result
        return report

    def seconds(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """What a call returns, and an estimate of its time."""
        self._begin()
        with self:
            result = call()
        return result, self._seconds

    def _begin(self) -> None:
        self._before, self._alive, self._seconds = dict(self._parameters), {}, 0.0
        self._total, self._peak, self._behind_peak, self._saved = 0, 0, 0, None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._saved is None and torch._C._current_autograd_node() is not None:
            self._saved = self._behind_peak = self._total
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._alive:
                self._before[id(leaf.untyped_storage())] = leaf.untyped_storage()
        result = func(*args, **(kwargs or {}))
        made = sum(self._enter(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
        self._peak = max(self._peak, self._total)
        self._behind_peak = max(self._behind_peak, self._total) if self._saved is not None else 0
        count = flop_registry.get(func._overloadpacket)
        operations = count(*args, **(kwargs or {}), out_val=result) if count is not None else 0
        self._seconds += operations / OPERATIONS_A_SECOND + 2 * made / BYTES_A_SECOND
        return result

    def _enter(self, tensor: Tensor) -> int:
        """Count the bytes of a storage that is new, until it is gone."""
        storage = tensor.untyped_storage()
        key, size, alive = id(storage), storage.nbytes(), self._alive
        if key in alive or key in self._before:
            return 0

        def gone(_: object) -> None:
            if alive.pop(key, None) is not None and alive is self._alive:
                self._total -= size

        alive[key] = weakref.ref(storage, gone), size
        self._total += size
        return size
