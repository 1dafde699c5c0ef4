"""Checkpoint of one module call: its saved tensors are dropped, its inputs kept, and backward calls it again.

The same replay as in a stream (generators, autocast, buffers), for modules outside of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from momentumnet.core.arguments import version
from momentumnet.core.replay import BlockCall
from momentumnet.core.saved_tensors import Collected, SavedTensors
from momentumnet.errors import ReconstructionError

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Checkpoint:
    """Calls modules so that their activations are recomputed in backward."""

    def call(
        self,
        name: str,
        module: nn.Module,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call ``function(*args, **kwargs)`` and return its output.

        Raises:
            ReconstructionError: the module overwrites one of its inputs, in forward; or, in backward, it does not
                compute again what it computed in forward.
        """
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        inputs = [(leaf, version(leaf)) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        call = BlockCall(name, module, function, None, args, kwargs)
        kept = _Kept(call)
        with SavedTensors(name, kept.refill).dropping():
            output = call.first(args, kwargs)
        if any(version(leaf) != counter for leaf, counter in inputs):
            raise ReconstructionError(
                f"module {name!r} overwrites its own input in place, so it cannot be recomputed from it; use the "
                "out-of-place operation (inplace=False) at its start, or convert with others='keep'"
            )
        kept.fingerprint = _fingerprint(output)
        return output


class _Kept:
    """A call, and the fingerprint of what it returned."""

    def __init__(self, call: BlockCall) -> None:
        self._call = call
        self.fingerprint: list[int] = []

    def refill(self, saved: SavedTensors) -> None:
        collected = Collected()
        with torch.no_grad(), collected.collecting():
            output = self._call.again(None)
        if _fingerprint(output) != self.fingerprint:
            raise ReconstructionError(
                f"module {self._call.name!r} did not compute the same in backward as in forward, so its gradient would "
                "be wrong: it is not deterministic, or depends on something that changed in between. Convert with "
                "others='keep' if it has to stay so."
            )
        saved.fill(collected)


def _fingerprint(output: Any) -> list[int]:
    """A sum of the bits of each tensor of the output."""
    sums = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.layout == torch.strided:
            bits = leaf.detach().view(_BITS[leaf.element_size()])
            sums.append(bits.sum(dtype=bits.dtype))
    return [int(value) for value in sums]
