r"""The additive coupling of two streams (RevNet, Gomez et al., NeurIPS 2017; Reformer; reversible ViTs).

    (x, v) <- (v + f(x), x)

x is what the next block is called on, v the other stream. In integers a step is undone by a subtraction: exact without
a store, at zero bits a block.
"""

from __future__ import annotations

from fractions import Fraction

from momentumnet.arithmetic.two_stream_step import Coefficients
from momentumnet.core.rules.two_step import TwoStep

_ALL_OF_V = Coefficients(Fraction(0), Fraction(1))


class Additive(TwoStep):
    """The rule; a branch has weight 1, and v is multiplied with nothing."""

    gamma = Fraction(1)

    def coefficients(self, weight: float) -> Coefficients:
        return _ALL_OF_V
