"""The interface of the original momentumnet package (Sander, Ablin, Blondel, Peyre), on the exact engine."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from momentumnet.core.stream import MomentumStream
from momentumnet.errors import ConversionError


class MomentumNet(nn.Module):
    r"""A Momentum ResNet from a list of residual functions.

    ``v <- gamma v + (1 - gamma) f(x);  x <- x + v``, starting from ``v = 0`` or ``v = init_function(x)``.

    Signature and meaning are those of the original package, so its users move over by reinstalling; the backward pass
    is exact at every depth and gamma.

    Args:
        functions: the modules, in order; one module may stand several times. Each is called ``f(x, *function_args)``.
        gamma: in [0, 1], rounded to a fraction n/d with d <= 128.
        init_speed: start from ``init_function(x)`` instead of zero.
        init_function: the module that makes the initial velocity; must keep the shape.
        use_backprop: True stores activations (ordinary autograd); False recomputes them by running backwards.
        is_residual: True where the functions return the branch f(x); False where they return x + f(x).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from momentumnet import MomentumNet
        >>> function = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 16))
        >>> net = MomentumNet([function] * 10, gamma=0.9, use_backprop=False)
        >>> net(torch.randn(4, 16)).sum().backward()

    Raises:
        ValueError: gamma outside [0, 1], or ``init_speed`` without ``init_function``.
        ConversionError: ``functions`` is empty or holds something that is no module.

    References:
        Momentum Residual Neural Networks, ICML 2021, arXiv 2102.07870, equation 4.
    """

    def __init__(
        self,
        functions: Sequence[nn.Module] | nn.Module,
        gamma: float,
        init_speed: bool = False,
        init_function: nn.Module | None = None,
        use_backprop: bool = True,
        is_residual: bool = True,
    ) -> None:
        super().__init__()
        blocks = _modules(functions)
        if init_speed and init_function is None:
            raise ValueError("init_speed=True needs init_function, the module that makes the initial velocity from x")
        for index, function in enumerate(blocks):
            self.add_module(str(index), function)
        if init_function is not None:
            self.add_module("init", init_function)
        self.n_functions = len(blocks)
        self.init_speed = init_speed
        self.is_residual = is_residual
        self.use_backprop = use_backprop
        self._stream = MomentumStream(
            "MomentumNet",
            tuple(str(index) for index in range(len(blocks))),
            gamma,
            backward="stored" if use_backprop or gamma == 0 else "reversible",
            final_velocity="drop",
            branch_is_output=is_residual,
        )
        if init_speed:
            self._stream.velocity_module = init_function

    @property
    def gamma(self) -> float:
        """The momentum term."""
        return float(self._stream.gamma)

    @property
    def functions(self) -> list[nn.Module]:
        """The residual functions, in order."""
        return [self.get_submodule(str(index)) for index in range(self.n_functions)]

    @property
    def init_function(self) -> nn.Module | None:
        """The module that makes the initial velocity, if there is one."""
        return self._modules.get("init")

    def forward(self, x: Tensor, *function_args: Any, **function_kwargs: Any) -> Any:
        """Map x, of any shape, to the output; further arguments go to every function."""
        for index, function in enumerate(self.functions):
            x = self._stream.call(str(index), function, function, (x, *function_args), function_kwargs)
        return x


def _modules(functions: Sequence[nn.Module] | nn.Module) -> list[nn.Module]:
    blocks = list(functions) if isinstance(functions, Iterable) else [functions]
    strange = [type(block).__name__ for block in blocks if not isinstance(block, nn.Module)]
    if strange or not blocks:
        raise ConversionError(
            f"functions must be a non-empty sequence of nn.Module, got {strange or 'an empty sequence'}"
        )
    return blocks
