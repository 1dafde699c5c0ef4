"""The momentum rule in ordinary, differentiable operations, with stored activations.

For passes of which something wants to see every operation (`core.tensors.transforms`). It computes what `FloatState`
does, in the same operations, so that the values agree with those of a pass without gradients to the bit.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.tensors.inference import counted


class PlainState:
    """x and v of one pass, tensors of the graph: float64 for float64 streams, else float32.

    Args:
        x: start of the stream.
        v: initial velocity, or None for zero.
        gamma: the momentum factor.
    """

    def __init__(self, x: Tensor, v: Tensor | None, gamma: Fraction) -> None:
        self.gamma = gamma
        self._dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        self._x = x.to(self._dtype)
        self._v = None if v is None else v.to(self._dtype)

    def step(self, branch: Branch, weight: Fraction) -> Tensor:
        """Move on by one block and return the next x, of the dtype of the block's output."""
        f = branch.value().to(self._dtype)
        with counted():
            v = f * float(weight)
            self._v = v if self._v is None else v.add(self._v, alpha=float(self.gamma))
            self._x = self._v + self._x
            return self.output(branch.y.dtype, 0.0)

    def velocity(self, dtype: torch.dtype) -> Tensor:
        """v."""
        return torch.zeros_like(self._x, dtype=dtype) if self._v is None else self._v.to(dtype)

    def output(self, dtype: torch.dtype, factor: float) -> Tensor:
        """x + factor v."""
        return (self._x if not factor or self._v is None else self._x + self._v * factor).to(dtype)
