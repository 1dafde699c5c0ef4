"""What two passes over one batch share: running statistics that count it once."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # private, but the only common base of torch's norms with statistics


class RunningStatistics:
    """Running means, variances and counters as they are after the first pass, to be put back after the second.

    Backed up and not switched off: flags of the modules would have to be turned in the middle of a step, and an
    instance norm has none. Costs a copy of these buffers between the passes.

    Args:
        model: Where the norms are. ``None`` looks at every module that is called until `put_back`.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._seen: set[nn.Module] = set()
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._hook = None
        if model is None:
            before_call = weakref.WeakMethod(self._before_call)
            self._hook = nn.modules.module.register_module_forward_pre_hook(
                lambda module, args: method(module) if (method := before_call()) else None
            )
            weakref.finalize(self, self._hook.remove)  # an optimizer that is dropped in mid-step leaves no hook
        else:
            self._keep(model)

    def put_back(self) -> None:
        """Make every buffer what it was, in place."""
        if self._hook is not None:
            self._hook.remove()
        with torch.no_grad():
            for buffer, value in self._kept:
                buffer.copy_(value)

    def _before_call(self, module: nn.Module) -> None:
        # The outermost module comes first and brings its parts, which may be called where no hook runs (compiled).
        if module not in self._seen:
            self._keep(module)

    def _keep(self, model: nn.Module) -> None:
        for module in model.modules():
            if module not in self._seen and isinstance(module, _NormBase):
                self._kept += [(buffer, buffer.detach().clone()) for buffer in module.buffers(recurse=False)]
            self._seen.add(module)
