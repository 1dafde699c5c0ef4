"""Modules and blocks whose last layer need not be computed again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import momentumnet as mn
from momentumnet.core.outside.checkpoint import Checkpoint

WIDTH = 16
WIDE = 64


class Products(TorchDispatchMode):
    """Counts the products of layers that are computed: a layer has saved what it needs before."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


class Head(nn.Module):
    """Two layers, of which the last one's result is not needed for its own gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDE), nn.Linear(WIDE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(x)))

    def hidden(self, x: Tensor) -> Tensor:
        return self.first(x)


class Checkpointed(nn.Module):
    """The module, recomputed in backward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self._checkpoint = module, Checkpoint()

    def forward(self, x: Tensor) -> Any:
        return self._checkpoint.call("module", self.module, self.module, (x,), {})


def rows() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(32, WIDTH, requires_grad=True)


def step(net: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(2)
    net.zero_grad()
    net(rows()).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


def built(module: type[nn.Module] = Head) -> nn.Module:
    torch.manual_seed(0)
    return Checkpointed(module())


def products(net: nn.Module) -> int:
    """In a second training step: the first recompute runs to its end, and shows whether others have to."""
    step(net)
    with Products() as counted:
        step(net)
    return counted.count


class Unsteady(Head):
    """One hidden value is another one each time: not one that a sample of them would show."""

    place, steady = 1, True

    def hidden(self, x: Tensor) -> Tensor:
        hidden = super().hidden(x)
        mark = torch.zeros_like(hidden)
        mark.view(-1)[self.place] = 0.0 if self.steady else float(torch.rand((), generator=self.own))
        return hidden + mark

    own = torch.Generator().manual_seed(0)


class Residual(nn.Module):
    """A block of the stream."""

    def __init__(self, branch: type[nn.Module] = Head) -> None:
        super().__init__()
        self.branch = branch()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def stream(branch: type[nn.Module] = Head, *, backward: str = "checkpointed") -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(Residual(), Residual(branch), Residual())
    return mn.convert(net, rows().detach(), gamma=0.5, backward=backward)
