"""A reversible network of two streams from a list of functions: the additive coupling on the exact engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.core.passes.two_streams import TwoStreams
from momentumnet.errors import ConversionError
from momentumnet.options import is_whole


class ReversibleSequential(nn.Module):
    r"""Functions that are added to two halves of a tensor in turns, without stored activations.

    With ``x1, x2 = x.chunk(2, split_dim)`` and functions f, g, h, ...::

        x1 <- x1 + f(x2);  x2 <- x2 + g(x1);  x1 <- x1 + h(x2);  ...

    Returned is ``cat([x1, x2], split_dim)``. This is the additive coupling of RevNet, Reformer and reversible vision
    transformers. Backward runs the network backwards, exactly: both halves are integers, from which the functions are
    taken away again, bit for bit, at any depth, and nothing is kept for a block. Its gradients are those of
    ``backward="stored"``.

    Args:
        functions: modules in order; one may stand several times. Each is called ``f(half, *args, **kwargs)`` and
            returns a tensor of the half's shape.
        split_dim: the dimension that is cut in two.
        arithmetic: "exact" (integers) or "float" (the plain inverse, whose rounding is compared to 1 %).
        backward: "reversible", "checkpointed" or "stored", as `convert` has them.

    Raises:
        ConversionError: there is no function, or it is no module; in forward: the input is no tensor whose dimension
            can be cut in two.
        ValueError: an option has a value that it does not take.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> def branch():
        ...     return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
        >>> net = mn.ReversibleSequential(*[branch() for _ in range(10)])
        >>> net(torch.randn(4, 16)).sum().backward()

    References:
        Gomez, Ren, Urtasun, Grosse: The Reversible Residual Network, NeurIPS 2017, arXiv 1707.04585, equation 6.
    """

    def __init__(
        self, *functions: nn.Module, split_dim: int = 1, arithmetic: str = "exact", backward: str = "reversible"
    ) -> None:
        super().__init__()
        strange = [type(function).__name__ for function in functions if not isinstance(function, nn.Module)]
        if strange or not functions:
            raise ConversionError(f"ReversibleSequential takes modules, one or more, got {strange or 'none'}")
        if not is_whole(split_dim):
            raise ValueError(f"split_dim must be a dimension, e.g. -1, got {split_dim!r}")
        for index, function in enumerate(functions):
            self.add_module(str(index), function)
        self.split_dim = split_dim
        names = tuple(str(index) for index in range(len(functions)))
        self.stream = TwoStreams(type(self).__name__, names, arithmetic=arithmetic, backward=backward)

    def __prepare_scriptable__(self) -> Any:
        raise ConversionError(
            "torch.jit.script cannot compile a reversible stream; use torch.jit.trace or torch.export"
        )

    def __len__(self) -> int:
        return len(self.stream.blocks)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map x, of any shape with an even ``split_dim``, to the output of the same shape."""
        first, second = self._halves(x)
        self.stream.begin(second, first)
        for name in self.stream.blocks:
            function = self.get_submodule(name)
            second = self.stream.call(name, function, function, (second, *args), kwargs)
        first = self.stream.other_of(second)
        # Behind an odd number of functions the first half was the last to be added to.
        return torch.cat([second, first] if len(self) % 2 else [first, second], self.split_dim)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fits = isinstance(x, Tensor) and -x.dim() <= self.split_dim < x.dim()
        if not fits or x.shape[self.split_dim] % 2 or not x.shape[self.split_dim]:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ConversionError(
                f"ReversibleSequential cuts dimension {self.split_dim} of its input in two, got {got}; give a tensor "
                "with an even number there, or another split_dim"
            )
        first, second = x.chunk(2, self.split_dim)
        return first, second
