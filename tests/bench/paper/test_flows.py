from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from momentumnet.bench.paper.blocks import TanhBlock, flow, network
from momentumnet.bench.paper.crossing import Crossing, grid
from momentumnet.bench.paper.flows import MOMENTUM, RESNET
from momentumnet.bench.paper.plots import plot
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


def test_steepness_is_the_largest_singular_value_at_the_places_of_all_layers() -> None:
    block = TanhBlock([3, 4], 2, 8)
    # Places that come nearer to 0, where tanh is steep; from the last one no layer starts.
    frames = torch.randn(7, 2, 5, 2) * torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0, 1.0, 0.01])[:, None, None, None]
    for seed, found in enumerate(CROSSING.steepness(block, frames)):
        weights = {name: np.array(values) for name, values in block.values(seed).items()}
        largest = 0.0
        for place in frames[:-1, seed].flatten(0, 1).numpy():
            slopes = 1 - np.tanh(weights["w1"] @ place + weights["b1"][0]) ** 2
            derivative = weights["w2"] @ np.diag(slopes) @ weights["w1"]
            largest = max(largest, float(np.sqrt(np.linalg.eigvalsh(derivative.T @ derivative).max())))
        assert found == pytest.approx(largest, rel=1e-4)


def test_points_of_a_seed_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = Crossing.sample, []

    def recorded(self: Crossing, generator: torch.Generator, points: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append((generator.initial_seed(), points))
        return real(self, generator, points)

    monkeypatch.setattr(Crossing, "sample", recorded)
    Crossing(steps=2, points=6).rows(RESNET, [0, 7])
    assert drawn == [(1_000_000, 6), (1_000_007, 6)] * 2


def test_figure_shows_where_the_layers_take_nine_points(tmp_path: Path, drawn: list[pyplot.Figure]) -> None:
    experiment = Crossing(steps=3, points=5)
    rows = [experiment.rows(model, [0])[0] for model in (RESNET, MOMENTUM)]
    plot(experiment, rows, tmp_path / "paths.png")
    for axes, row, gamma in zip(drawn[0].axes, rows, (0.0, 0.99), strict=True):
        weights = {name: np.array(values) for name, values in row["weights"].items()}
        starts = np.linspace(-1, 1, 9)[:, None]
        place, velocity, expected = starts, 0.0, [starts]
        for _ in range(15):
            branch = np.tanh(place @ weights["w1"].T + weights["b1"]) @ weights["w2"].T + weights["b2"]
            velocity = gamma * velocity + (1 - gamma) * branch
            place = place + velocity
            expected.append(place)
        *paths, wanted = axes.lines
        np.testing.assert_allclose([line.get_ydata() for line in paths], np.concatenate(expected, 1), atol=1e-4)
        np.testing.assert_allclose(wanted.get_ydata(), -(starts[:, 0] ** 3), atol=1e-6)


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


def test_scores_that_are_no_number_name_no_class() -> None:
    """``argmax`` takes NaN for the largest: half of all points were right."""
    block = TanhBlock([0], 2, 4)
    for parameter in block.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    assert Rings(steps=1, points=5).measures(block, 0.0, [0])[0]["accuracy"] == 0
