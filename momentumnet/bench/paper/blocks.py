"""Residual functions that stand for those of several seeds at once, and the networks that repeat them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from momentumnet import MomentumNet


class TanhBlock(nn.Module):
    """``f(x) = W2 tanh(W1 x + b1) + b2``, a residual function of its own for each seed.

    Points come as (seeds, points, dimension). Nothing passes from one seed to another, so each trains as if alone;
    together they take little longer than one, because such small layers cost time by the call.

    The weights begin as those of ``nn.Linear`` do: uniform within 1 / sqrt(fan in).

    Args:
        seeds: Decide the first weights, a seed each.
        dimension: Of the points.
        hidden: Rows of W1.
    """

    def __init__(self, seeds: Sequence[int], dimension: int, hidden: int) -> None:
        super().__init__()
        shapes = ((hidden, dimension), (1, hidden), (dimension, hidden), (1, dimension))
        bounds = (dimension**-0.5, dimension**-0.5, hidden**-0.5, hidden**-0.5)
        drawn = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            drawn.append(
                [bound * (2 * torch.rand(s, generator=generator) - 1) for s, bound in zip(shapes, bounds, strict=True)]
            )
        self.w1, self.b1, self.w2, self.b2 = (nn.Parameter(torch.stack(same)) for same in zip(*drawn, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """f at the points of each seed."""
        return torch.baddbmm(self.b2, torch.baddbmm(self.b1, x, self.w1.mT).tanh(), self.w2.mT)

    def jacobians(self, x: Tensor) -> Tensor:
        """The derivative of f at each point: (seeds, points, dimension, dimension)."""
        slopes = 1 - torch.baddbmm(self.b1, x, self.w1.mT).tanh().square()
        return torch.einsum("sih,sph,shj->spij", self.w2, slopes, self.w1)

    def values(self, index: int) -> dict[str, list[list[float]]]:
        """The weights of one seed, as plain numbers."""
        return {name: parameter[index].tolist() for name, parameter in self.named_parameters()}

    @classmethod
    def from_values(cls, values: dict[str, list[list[float]]]) -> TanhBlock:
        """The block of one seed whose weights are ``values``."""
        hidden, dimension = len(values["w1"]), len(values["w1"][0])
        block = cls([0], dimension, hidden)
        block.load_state_dict({name: torch.tensor([value]) for name, value in values.items()})
        return block


class LinearBlock(nn.Module):
    """``f(x) = Theta x / depth``, a Theta of its own for each entry of the leading dimensions.

    Args:
        theta: The first matrices, (..., dimension, dimension).
        depth: Number of layers that share it.
    """

    def __init__(self, theta: Tensor, depth: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """f at the rows of x: (..., points, dimension)."""
        return x @ self.theta.mT / self.depth


def network(block: nn.Module, depth: int, gamma: float) -> MomentumNet:
    """``depth`` layers that share one residual function; at gamma 0 it is a ResNet.

    A Momentum ResNet runs backwards for its gradients, which are those of stored activations to the bit.
    """
    return MomentumNet([block] * depth, gamma=gamma, use_backprop=gamma == 0)


@torch.no_grad()
def flow(block: nn.Module, x: Tensor, depth: int, gamma: float) -> Tensor:
    """The points before the first layer and after each: (depth + 1, *x.shape)."""
    places: list[Tensor] = []
    with block.register_forward_pre_hook(lambda _, given: places.append(given[0].clone())):
        end = network(block, depth, gamma)(x)
    return torch.stack([*places, end])
