r"""Two residual connections (Dr2Net; Zhao et al., CVPR 2024, arXiv 2401.04105, equation 1) as a coupling.

    y_i = beta x_{i-1};  x_i = F_i(x_{i-1}) + alpha x_{i-1} + y_{i-1};  y_0 = 0

F is a block without its skip connection: f. As one recurrence, v being the x of the block before:

    x' = alpha x + beta v + f(x);  v' = x

At alpha = 1, beta = 0 it is the residual network, which cannot be undone; beta > 0 makes it reversible. Multiplying by
beta = n/d loses log2(d/n) bits of v, which are put aside as those of the momentum rule are. The paper raises beta while
it trains, because the inverse in floats loses digits at a small one; integers lose none at any.
"""

from __future__ import annotations

import math
from fractions import Fraction

from momentumnet.arithmetic.fixed_point import MAX_DENOMINATOR
from momentumnet.arithmetic.two_stream_step import Coefficients
from momentumnet.core.rules.two_step import TwoStep


class Dr2Net(TwoStep):
    """The coupling of Dr2Net, for ``momentumnet.convert(..., coupling=Dr2Net(...))``.

        x_i = f(x_{i-1}) + alpha x_{i-1} + beta x_{i-2}

    Args:
        alpha: of the residual connection that the network has, in [0, 1], rounded to the nearest n/d with d <= 128.
        beta: of the connection over two blocks that makes it reversible, in (0, 1], rounded likewise. The smaller, the
            nearer to the network as it was, and the more bits a block takes: log2(1/beta).

    Raises:
        TypeError: a coefficient is no number.
        ValueError: a coefficient is outside of its range.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> x = torch.randn(2, 5, 16)
        >>> converted = mn.convert(model, x, coupling=mn.Dr2Net(alpha=0.9, beta=0.1))
        >>> converted(x).sum().backward()

    References:
        Zhao, Liu, Mangalam, Qian, Zohra, Alghannam, Malik, Ghanem: Dr2Net: Dynamic Reversible Dual-Residual Networks
        for Memory-Efficient Finetuning, CVPR 2024, arXiv 2401.04105, equation 1.
    """

    def __init__(self, *, alpha: float | Fraction = 1, beta: float | Fraction = Fraction(1, 64)) -> None:
        self.alpha, self.beta = _fraction("alpha", alpha), _fraction("beta", beta)
        if not self.beta:
            raise ValueError(
                f"beta must be above 0, where nothing can be undone: 1/{MAX_DENOMINATOR} or more, got {beta!r}"
            )
        self.gamma = self.beta
        self._coefficients = Coefficients(self.alpha, self.beta)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dr2Net) and (self.alpha, self.beta) == (other.alpha, other.beta)

    def __hash__(self) -> int:
        return hash((self.alpha, self.beta))

    def __repr__(self) -> str:
        return f"Dr2Net(alpha={self.alpha}, beta={self.beta})"

    @property
    def digits_lost(self) -> float:
        """What rounding grows by: ahead by the larger root of r² = alpha r + beta, back by the other one's inverse.

        (s + alpha) / (s - alpha) a block, with s = √(alpha² + 4 beta).
        """
        s = math.sqrt(self.alpha**2 + 4 * self.beta)
        return math.log10((s + self.alpha) / (s - self.alpha))

    def coefficients(self, weight: float) -> Coefficients:
        return self._coefficients


def _fraction(name: str, value: float | Fraction) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)):
        raise TypeError(f"{name} must be a number in [0, 1], got {value!r} of type {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
    return Fraction(value).limit_denominator(MAX_DENOMINATOR)
