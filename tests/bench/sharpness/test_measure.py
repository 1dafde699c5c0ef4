"""One look at a landscape, against whole Hessians and against a search over the whole ball."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.bench.sharpness import measure as module
from momentumnet.bench.sharpness.measure import measure
from tests.landscape.reference import dense_hessian
from tests.models import Chain, ResidualMLP


def largest(model: nn.Module, batch: tuple[Tensor, Tensor]) -> list[float]:
    """By torch.autograd.functional.hessian and NumPy."""
    matrix = dense_hessian(model, F.cross_entropy, batch).numpy()
    return sorted(np.linalg.eigvalsh(matrix).tolist(), reverse=True)[:5]


def test_eigenvalues_are_those_of_the_whole_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    batch = torch.randn(20, 3).double(), torch.randint(3, (20,))
    found = measure(model, batch, 1)
    assert found["converged"]
    assert found["eigenvalues"] == pytest.approx(largest(model, batch), rel=1e-3)


class MomentumChain(nn.Module):
    """The momentum rule and its flush, written out, over the blocks of a chain."""

    def __init__(self, chain: Chain, gamma: float) -> None:
        super().__init__()
        self.chain, self.gamma = chain, gamma

    def forward(self, x: Tensor) -> Tensor:
        x = self.chain.stem(x)
        v = torch.zeros_like(x)
        for block in self.chain.blocks:
            v = self.gamma * v + (1 - self.gamma) * (block(x) - x)
            x = x + v
        return self.chain.head(x + self.gamma / (1 - self.gamma) * v)


def test_eigenvalues_through_a_converted_network_are_those_of_its_rule() -> None:
    torch.manual_seed(3)
    chain = Chain([ResidualMLP(6) for _ in range(4)], width=6).double()
    batch = torch.randn(12, 6).double(), torch.randint(4, (12,))
    rule = MomentumChain(chain, 0.9)
    converted = mn.convert(chain, batch[0][:2], gamma=0.9, backward="reversible")
    torch.testing.assert_close(converted(batch[0]), rule(batch[0]))
    expected = largest(rule, batch)
    assert measure(converted, batch, 1)["eigenvalues"] == pytest.approx(expected, rel=1e-3)
    assert measure(chain, batch, 1)["eigenvalues"] != pytest.approx(expected, rel=1e-2)  # another network


class Logistic(nn.Module):
    """Two classes, the second of which always scores 0."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.linear(x), (0, 1))


def test_sharpness_is_that_of_a_search_over_the_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convex loss is highest on the ball's surface, here a circle; SAM's step from the formula of the gradient."""
    monkeypatch.setattr(module, "EIGENVALUES", 2)
    torch.manual_seed(0)
    model = Logistic().double()
    x, y = torch.randn(9, 2).double(), torch.randint(2, (9,))
    found = measure(model, (30 * x, y), 2)
    points, sign = 30 * x.numpy(), np.where(y.numpy() == 0, 1.0, -1.0)
    w = model.linear.weight.detach().numpy()[0]

    def loss(weights: np.ndarray) -> np.ndarray:
        return np.log1p(np.exp(-sign * (weights @ points.T))).mean(-1)

    angles = np.linspace(0, 2 * np.pi, 100_001)
    circle = w + 0.05 * np.stack([np.cos(angles), np.sin(angles)], 1)
    assert found["sharpness"] == pytest.approx(float(loss(circle).max() - loss(w)), rel=1e-4)
    slope = -(sign / (1 + np.exp(sign * (points @ w)))) @ points / len(points)
    step = w + 0.05 * slope / np.linalg.norm(slope)
    assert found["first_step"] == pytest.approx(float(loss(step) - loss(w)), rel=1e-9)
    assert found["first_step"] < 0.999 * found["sharpness"]  # the two can be told apart


def test_highest_point_is_looked_for_from_as_many_points_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = module.landscape.sharpness, []

    def watched(*arguments: Any, **options: Any) -> float:
        seen.append((arguments[3], options))
        return real(*arguments, **options)

    monkeypatch.setattr(module.landscape, "sharpness", watched)
    measure(nn.Linear(3, 3), (torch.randn(5, 3), torch.randint(3, (5,))), 4)
    assert seen == [(0.05, {"steps": 1}), (0.05, {"starts": 4})]


def test_look_is_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).train()
    batch = torch.randn(5, 3), torch.randint(3, (5,))
    whole = measure(model, batch, 1)
    assert not model.training
    assert measure(model.eval(), batch, 1) == whole


def test_what_did_not_converge_is_said_and_nothing_else_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    batch = torch.randn(20, 3).double(), torch.randint(3, (20,))
    monkeypatch.setattr(module, "PRODUCTS", 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(model, batch, 1)
    assert not found["converged"]
    assert found["eigenvalues"][0] <= largest(model, batch)[0] * (1 + 1e-9)

    def warning(*arguments: object, **options: object) -> Tensor:
        warnings.warn("something else", UserWarning, stacklevel=1)
        return torch.ones(5)

    monkeypatch.setattr(module.landscape, "hessian_top_eigenvalues", warning)
    with pytest.warns(UserWarning, match="something else"):
        assert measure(model, batch, 1)["converged"]
