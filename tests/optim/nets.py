"""Small problems for two-step optimizers, and the formulas of the papers without the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from momentumnet.optim.two_step import TwoStepOptimizer

Loss = Callable[[], Tensor]


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(dtype: torch.dtype = torch.float64, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 5, generator=generator, dtype=dtype), torch.randint(3, (size,), generator=generator)


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def closure_of(optimizer: Optimizer, loss: Loss) -> Loss:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def two_passes(optimizer: TwoStepOptimizer, closure: Loss, *, by_hand: bool) -> None:
    """One step of two passes, by either of the two contracts."""
    if by_hand:
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
    else:
        optimizer.step(closure)


def values(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def sam_gradient(
    parameters: Sequence[Tensor],
    loss: Loss,
    rhos: Sequence[float],
    *,
    scales: Callable[[Tensor], Tensor] = torch.ones_like,
) -> list[Tensor]:
    """g(w + e) with e = rho T^2 g / |T g| (`scales` gives T), one rho a parameter; the parameters stay as they are."""
    kept = [parameter.detach().clone() for parameter in parameters]
    gradients = torch.autograd.grad(loss(), parameters)
    scaled = [scales(w) * g for w, g in zip(kept, gradients, strict=True)]
    norm = torch.cat([s.flatten() for s in scaled]).norm()
    with torch.no_grad():
        for parameter, w, s, rho in zip(parameters, kept, scaled, rhos, strict=True):
            parameter.copy_(w + rho * scales(w) * s / norm)
    result = list(torch.autograd.grad(loss(), parameters))
    with torch.no_grad():
        for parameter, w in zip(parameters, kept, strict=True):
            parameter.copy_(w)
    return result
