"""What the measurements are compared with: the whole Hessian, and the maximum of a quadratic form in a ball."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from momentumnet.loss.batches import LossFunction, outputs_of


class Quadratic(nn.Module):
    """Returns ``g.w + w'Aw / 2`` of the two vectors that are its parameters, joined to w."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.head, self.tail = (nn.Parameter(part.clone()) for part in start.split([1, len(start) - 1]))

    def forward(self, slope: Tensor, matrix: Tensor) -> Tensor:
        w = torch.cat([self.head, self.tail])
        return slope @ w + w @ matrix @ w / 2


def itself(output: Tensor, target: object) -> Tensor:
    return output


def dense_hessian(model: nn.Module, loss_fn: LossFunction, batch: Any) -> Tensor:
    """By torch.autograd.functional.hessian, of the trainable parameters in their order."""
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(*theta: Tensor) -> Tensor:
        tensors = dict(zip(trainable, theta, strict=True))
        return loss_fn(outputs_of(lambda *a, **k: functional_call(model, tensors, a, k), batch[0]), batch[1])

    blocks = torch.autograd.functional.hessian(loss, tuple(trainable.values()))
    sizes = [p.numel() for p in trainable.values()]
    rows = [
        torch.cat([block.reshape(n, m) for block, m in zip(row, sizes, strict=True)], 1)
        for row, n in zip(blocks, sizes, strict=True)
    ]
    return torch.cat(rows)


def highest_rise(slope: Tensor, matrix: Tensor, radius: float) -> float:
    """The maximum of ``slope.e + e'Ae / 2`` in the ball: e = (mu - A)^-1 slope, mu from the secular equation.

    At the maximum mu is 0 (inside the ball) or what makes the norm of e the radius, and mu - A is not negative.
    """
    values, vectors = torch.linalg.eigh(matrix)
    parts = vectors.T @ slope
    largest = float(values[-1])

    def point(mu: float) -> Tensor:
        return parts / (mu - values)

    if largest < 0 and float(point(0.0).norm()) <= radius:
        mu = 0.0
    else:
        low = max(largest, 0.0)
        high = low + float(slope.norm()) / radius + 1e-300
        for _ in range(200):
            mu = (low + high) / 2
            low, high = (mu, high) if float(point(mu).norm()) > radius else (low, mu)
        mu = high
    e = point(mu)
    assert math.isclose(float(e.norm()), radius, rel_tol=1e-9) or mu == 0
    return float(parts @ e + (values * e * e).sum() / 2)
