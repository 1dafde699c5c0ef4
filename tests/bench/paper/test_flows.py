from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from momentumnet.bench.paper.blocks import TanhBlock, flow, network
from momentumnet.bench.paper.crossing import Crossing, grid
from momentumnet.bench.paper.flows import MOMENTUM, RESNET
from momentumnet.bench.paper.rings import PointClouds, Rings

CROSSING = Crossing(steps=60, points=20)


@pytest.mark.parametrize("gamma", [0.0, 0.99])
def test_flow_is_the_rule_written_out(gamma: float) -> None:
    block, x = TanhBlock([3, 4], 2, 8), torch.randn(2, 5, 2)
    found = flow(block, x, 6, gamma)
    assert found.shape == (7, 2, 5, 2)
    for index in range(2):
        weights = {name: np.array(values) for name, values in block.values(index).items()}
        place, velocity = x[index].double().numpy(), 0.0
        for layer in range(7):
            np.testing.assert_allclose(found[layer, index].numpy(), place, atol=1e-4)
            branch = np.tanh(place @ weights["w1"].T + weights["b1"]) @ weights["w2"].T + weights["b2"]
            velocity = gamma * velocity + (1 - gamma) * branch
            place = place + velocity


def test_jacobians_are_those_of_autograd() -> None:
    block, x = TanhBlock([0], 2, 4), torch.randn(1, 3, 2)
    own = block.jacobians(x)[0]
    for point in range(3):
        expected = torch.autograd.functional.jacobian(lambda place: block(place[None, None])[0, 0], x[0, point])
        torch.testing.assert_close(own[point], expected)


def test_weights_of_a_row_are_the_network() -> None:
    block, x = TanhBlock([5, 6], 2, 16), torch.randn(2, 7, 2)
    again = TanhBlock.from_values(block.values(1))
    torch.testing.assert_close(flow(again, x[1:], 4, 0.99)[-1], network(block, 4, 0.99)(x)[1:].detach())


def test_momentum_crosses_and_short_residual_steps_do_not() -> None:
    for model in (RESNET, MOMENTUM):
        (row,) = CROSSING.rows(model, [0])
        places = flow(TanhBlock.from_values(row["weights"]), grid(21), 15, CROSSING.gamma_of(model))[:, 0, :, 0]
        keeps_order = bool((places.diff(dim=1) > 0).all())
        if model == RESNET:
            assert row["steepness"] < 1
            assert row["turned"] == 0
            assert row["error_on_grid"] > 1 / 7 - 0.01  # that of the constant 0, the best map that keeps the order
            assert keeps_order
        else:
            assert row["turned"] > 80
            assert row["error_on_grid"] < 0.06
            assert not keeps_order


def test_seeds_train_side_by_side_as_if_alone() -> None:
    short = replace(CROSSING, steps=5)
    together = short.rows(MOMENTUM, [0, 1])
    for row, seed in zip(together, (0, 1), strict=True):
        (alone,) = short.rows(MOMENTUM, [seed])
        for name, values in alone["weights"].items():
            np.testing.assert_allclose(row["weights"][name], values, atol=1e-4)
    assert together[0]["weights"] != together[1]["weights"]


def test_row_without_numbers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crossing, "rates", {RESNET: 1e30})
    (row,) = Crossing(steps=4, points=5).rows(RESNET, [0])
    assert "diverged" in row["error"]


@pytest.mark.parametrize("rings", [Rings(steps=1, points=9), PointClouds(steps=1, points=9)])
def test_rings_are_bands_whose_classes_take_turns(rings: Rings) -> None:
    x, wanted = rings.sample(torch.Generator().manual_seed(0), 200)
    radii = x.norm(dim=1).view(rings.count, 200)
    for ring, own in enumerate(radii):
        assert 1.5 * (ring + 1) - 1e-4 <= float(own.min()) <= float(own.max()) <= 1.5 * (ring + 1) + 0.6 + 1e-4
        assert set(wanted.view(rings.count, 200)[ring].tolist()) == {ring % 2}


def test_accuracy_is_by_the_larger_coordinate() -> None:
    rings = Rings(steps=2, points=20)
    (row,) = rings.rows(MOMENTUM, [7])
    x, wanted = rings.sample(torch.Generator().manual_seed(2_000_007), 500)
    ends = flow(TanhBlock.from_values(row["weights"]), x[None], 15, 0.99)[-1, 0]
    right = (ends[:, 1] > ends[:, 0]).long() == wanted
    assert row["accuracy"] == pytest.approx(100 * float(right.float().mean()), abs=0.2)
