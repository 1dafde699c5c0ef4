r"""Bidirectional integration as a coupling (BDIA; Zhang, Lewis, Kleijn, ICML 2025, arXiv 2407.09093).

    x' = g v + (1 - g) x + (1 + g) f(x);  v' = x        g = 1/2 or -1/2, by chance; 0 in a stream's first step

v is the x of the block before. A block is a step of Euler's method for an ordinary differential equation; the rule
averages it with one that comes from the block before, backwards in time. The expectation over g is x + f(x), the
residual network itself: that is computed in eval mode. Halving v loses one bit of each element, which is put aside. A
step's weight 1 + g says which g it has.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

from momentumnet.arithmetic.two_stream_step import Coefficients
from momentumnet.core.rules.momentum import Momentum
from momentumnet.core.rules.two_step import TwoStep
from momentumnet.core.state.coupling import Coupling

HALF = Fraction(1, 2)
_EXPECTED = Momentum(Fraction(0))
_BY_WEIGHT = {float(1 + g): Coefficients(1 - g, g) for g in (-HALF, Fraction(0), HALF)}


class Bdia(TwoStep):
    """The rule; one g holds for all samples of a batch."""

    gamma = HALF
    is_residual_in_eval = True

    def coefficients(self, weight: float) -> Coefficients:
        return _BY_WEIGHT[weight]

    def of(self, module: nn.Module) -> Coupling:
        """In eval mode the residual network, which is momentum at 0; it cannot be undone."""
        return self if module.training else _EXPECTED

    def draw_weight(self, *, first: bool) -> Fraction:
        """1 + g; by PyTorch's generator of the CPU, so that a seed, or a checkpoint around the stream, repeats it."""
        if first:
            return Fraction(1)
        return 1 + HALF if int(torch.randint(2, (), device="cpu")) else HALF
