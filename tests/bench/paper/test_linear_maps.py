from __future__ import annotations

import numpy as np
import pytest
import torch

from momentumnet.bench.paper import linear_fits
from momentumnet.bench.paper.blocks import LinearBlock, network
from momentumnet.bench.paper.linear_fits import EPSILONS, TARGETS, LinearMaps
from momentumnet.bench.paper.linear_maps import layers_factor, limit_factor, lowest_factor, momentum_of, representable
from momentumnet.bench.paper.tables import table

RESNET, MOMENTUM = "ResNet", "Momentum ResNet, epsilon 1"


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0])
def test_network_is_the_polynomial_of_its_matrix(epsilon: float) -> None:
    depth, theta = 32, 3 * np.random.default_rng(0).standard_normal((3, 3))
    values, vectors = np.linalg.eig(theta)
    gamma = momentum_of(epsilon, depth)
    expected = vectors @ np.diag(layers_factor(values, depth, gamma)) @ np.linalg.inv(vectors)
    model = network(LinearBlock(torch.tensor(theta), depth), depth, gamma)
    found = model(torch.eye(3, dtype=torch.float64)).mT.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("mu", [-30.0, -1.0, -0.25, 0.0, 2.0, -3 + 4j])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_limit_is_the_exponential_of_the_companion_matrix(epsilon: float, mu: complex) -> None:
    companion = torch.tensor([[0, 1], [mu / epsilon, -1 / epsilon]], dtype=torch.complex128)
    assert limit_factor(mu, epsilon) == pytest.approx(complex(torch.linalg.matrix_exp(companion)[0, 0]), abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0])
def test_layers_tend_to_the_limit_at_first_order(epsilon: float) -> None:
    errors = [
        abs(layers_factor(-9.0, depth, momentum_of(epsilon, depth)) - limit_factor(-9.0, epsilon))
        for depth in (512, 1024, 2048)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_lowest_factor_is_the_least_of_the_limit_on_the_real_line(epsilon: float) -> None:
    lowest = lowest_factor(epsilon)
    everywhere = min(limit_factor(mu, epsilon).real for mu in np.linspace(-400 * epsilon, 10, 100_001))
    assert lowest == pytest.approx(everywhere, abs=1e-4)
    assert -1 < lowest <= everywhere
    assert lowest_factor(epsilon, 4096) == pytest.approx(lowest, abs=1e-3)
    assert lowest_factor(2 * epsilon) < lowest


@pytest.mark.parametrize(
    ("matrix", "lowest", "expected"),
    [
        ([[0.5]], 0, True),
        ([[-0.1]], 0, False),
        ([[-0.1]], -0.6, True),
        ([[-1]], -0.6, False),
        (-np.eye(2), 0, True),
        (-np.eye(3), -0.6, False),
        (np.diag([-1, -1, -2, -2]), 0, True),
        (np.diag([-1, -1, -2, 2]), 0, False),
        (np.diag([-2, -1]), -0.6, False),
        ([[0, -1], [1, 0]], 0, True),
        ([[0, 1], [1, 0]], 0, False),
        ([[0, 0.3], [0.3, 0]], -0.6, True),
    ],
)
def test_negative_eigenvalues_below_the_lowest_come_in_pairs(matrix: object, lowest: float, expected: bool) -> None:
    assert representable(np.asarray(matrix), lowest) is expected


def test_fits_reach_what_is_represented_and_stop_where_theory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_fits, "TARGETS", {name: TARGETS[name] for name in ("-1", "-0.3", "0.5")})
    monkeypatch.setattr(linear_fits, "DIMENSIONS", [1])
    fits = LinearMaps(steps=150, starts=6, depth=16)
    for model, reached in ((RESNET, (0, 0, 0.5)), (MOMENTUM, (lowest_factor(1, 16), -0.3, 0.5))):
        found = fits.rows(model, [0])
        assert [row["reached"][0][0] for row in found] == pytest.approx(reached, abs=5e-3)
        assert [row["arrived"] > 0 for row in found] == [row["representable"] for row in found]
        (theta,) = found[1]["theta"][0]
        factor = layers_factor(theta, 16, momentum_of(EPSILONS[model], 16))
        assert float(factor) == pytest.approx(found[1]["reached"][0][0], abs=1e-12)


def test_map_of_the_plane_is_fitted_as_it_is_and_not_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    target = [[0.5, 1.0], [0.0, 0.4]]
    monkeypatch.setattr(linear_fits, "TARGETS", {"sheared": target})
    monkeypatch.setattr(linear_fits, "DIMENSIONS", [2])
    (row,) = LinearMaps(steps=300, starts=8, depth=2).rows(RESNET, [0])
    np.testing.assert_allclose(row["reached"], target, atol=1e-3)
    layer = np.eye(2) + np.array(row["theta"]) / 2
    np.testing.assert_allclose(row["reached"], layer @ layer, atol=1e-9)


def test_table_counts_the_seeds_that_arrived() -> None:
    own = {"target": "0.5", "model": RESNET, "representable": True}
    rows = [
        {**own, "seed": seed, "arrived": arrived, "distance": distance}
        for seed, (arrived, distance) in enumerate([(16, 0.0), (3, 0.0), (0, 0.3)])
    ]
    cells = {line[0]: line[2:] for line in table(rows, LinearMaps(steps=1).settings()).rows}
    assert cells["0.5"] == ("yes: 0.100 ± 0.173, 2 of 3", "", "")
    assert cells["1"] == ("", "", "")
