"""The interface of the original momentumnet package (Sander, Ablin, Blondel, Peyre), on the exact engine."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from momentumnet.core.passes.stream import MomentumStream
from momentumnet.errors import ConversionError
from momentumnet.options import true_or_false
from momentumnet.streams.blocks.roles import apply
from momentumnet.streams.finding.by_hand import check_paths, children_of


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
        ValueError: gamma outside [0, 1], ``init_speed`` without ``init_function``, or an option that is neither True
            nor False.
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
        true_or_false(init_speed=init_speed, use_backprop=use_backprop, is_residual=is_residual)
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
        self.stream = MomentumStream(
            "MomentumNet",
            tuple(str(index) for index in range(len(blocks))),
            gamma,
            backward="stored" if use_backprop else "reversible",
            final_velocity="drop",
            branch_is_output=is_residual,
        )
        if init_speed:
            self.stream.velocity_module = init_function

    def __prepare_scriptable__(self) -> Any:
        raise ConversionError("torch.jit.script cannot compile a momentum stream; use torch.jit.trace or torch.export")

    @property
    def gamma(self) -> float:
        """The momentum term."""
        return float(self.stream.gamma)

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
        if self.init_speed:
            self.stream.velocity_module = self.init_function  # the one that is registered now
        for index, function in enumerate(self.functions):
            x = self.stream.call(str(index), function, function, (x, *function_args), function_kwargs)
        return x


def _modules(functions: Sequence[nn.Module] | nn.Module) -> list[nn.Module]:
    blocks = list(functions) if isinstance(functions, Iterable) else [functions]
    strange = [type(block).__name__ for block in blocks if not isinstance(block, nn.Module)]
    if strange or not blocks:
        raise ConversionError(
            f"functions must be a non-empty sequence of nn.Module, got {strange or 'an empty sequence'}"
        )
    return blocks


def transform_to_momentumnet(
    model: nn.Module,
    sub_layers: Sequence[str] = ("layer1", "layer2", "layer3", "layer4"),
    keep_first_layer: bool = True,
    gamma: float = 0.9,
    use_backprop: bool = False,
    is_residual: bool = False,
) -> nn.Module:
    """Turn the named containers of a copy of the model into momentum streams, as the original package does.

    `momentumnet.convert` finds the streams by itself and keeps a pretrained function better. Unlike in the original
    package the state-dict keys stay those of the model.

    Args:
        model: a torchvision ``resnet*``, an ``nn.Transformer`` or any model whose containers hold residual blocks.
        sub_layers: dotted names of the containers.
        keep_first_layer: leave the first block of each container out of the stream (it may change the shape).
        gamma: the momentum term, in [0, 1].
        use_backprop: True stores activations; False recomputes them by running backwards.
        is_residual: True where the blocks return the branch f(x); False where they return x + f(x).

    Returns:
        A converted deep copy.

    Raises:
        ConversionError: a container does not exist or holds no block.
        ValueError: an option has a value that it does not take.

    Example:
        >>> from torchvision.models import resnet18
        >>> from momentumnet import transform_to_momentumnet
        >>> net = transform_to_momentumnet(resnet18(), gamma=0.9, use_backprop=False)

        >>> import torch
        >>> transformer = torch.nn.Transformer(d_model=16, nhead=2, dim_feedforward=32)
        >>> net = transform_to_momentumnet(
        ...     transformer, sub_layers=["encoder.layers", "decoder.layers"], gamma=0.9, keep_first_layer=False
        ... )
    """
    true_or_false(keep_first_layer=keep_first_layer, use_backprop=use_backprop, is_residual=is_residual)
    check_paths("sub_layers", sub_layers)
    runners = []
    for path in sub_layers:
        blocks = children_of(model, path)[1 if keep_first_layer else 0 :]
        if not blocks:
            raise ConversionError(
                f"container {path!r} has one block and keep_first_layer=True leaves none for the stream; leave it out "
                "of sub_layers, or pass keep_first_layer=False"
            )
        runners.append(
            MomentumStream(
                path,
                blocks,
                gamma,
                backward="stored" if use_backprop else "reversible",
                final_velocity="drop",
                branch_is_output=is_residual,
            )
        )
    converted = copy.deepcopy(model)
    apply(converted, runners)
    return converted
