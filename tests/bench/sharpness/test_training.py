"""The trainings of ``bench sharpness``: steps against their formulas, passes counted, and when they are looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from momentumnet.bench.data.images import load_digits
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.sharpness import training as module
from momentumnet.bench.sharpness.methods import METHODS, Recipe
from momentumnet.bench.sharpness.training import Trajectory
from momentumnet.streams.blocks.converted import is_converted, streams_of

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.1, rho=0.05, noise=20, gamma="9/10", measurements=2, probes=8, ascents=1)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Nothing is measured; the arguments of each measurement."""
    calls: list[tuple[Any, ...]] = []

    def measured(*arguments: Any) -> Row:
        calls.append(arguments)
        return {"sharpness": float(len(calls))}

    monkeypatch.setattr(module, "measure", measured)
    return calls


def trajectory(method: str, *, network: str = "resnet14_bn", looks: int = 2, **changes: Any) -> Trajectory:
    recipe = dataclasses.replace(RECIPE, **changes)
    data = load_digits().part(train=64, test=20)
    return Trajectory(network, 0, data, recipe, torch.device("cpu"), recipe.noise, METHODS[method], looks)


@pytest.mark.parametrize("method", ["sgd", "extragradient", "sam"])
def test_steps_are_those_of_the_formulas(method: str) -> None:
    """On |A w - b|^2 / 2, whose gradient is A'(A w - b): momentum 0.9, weight decay 1e-4, three steps."""
    rng = np.random.default_rng(0)
    matrix, wanted, w = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=3)
    lr, rho = 0.02, 0.3
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data.copy_(torch.tensor(w)[None])
    # Without normalisation vectors have a rate of their own; a matrix of one row has not.
    optimizer = METHODS[method].make(model, dataclasses.replace(RECIPE, lr=lr, rho=rho))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(torch.tensor(matrix))[:, 0] - torch.tensor(wanted)).square().sum() / 2
        loss.backward()
        return loss

    def gradient(at: np.ndarray) -> np.ndarray:
        return matrix.T @ (matrix @ at - wanted)

    velocity = np.zeros(3)
    for _ in range(3):
        optimizer.step(closure)
        g = gradient(w)
        place = {"sgd": w, "extragradient": w - lr * g, "sam": w + rho * g / np.linalg.norm(g)}[method]
        velocity = 0.9 * velocity + gradient(place) + 1e-4 * w
        w = w - lr * velocity
        np.testing.assert_allclose(model.weight.detach().numpy()[0], w, rtol=1e-12)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("method", list(METHODS))
def test_passes_are_as_many_as_the_row_says(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[Trajectory], nn.Module] = Trajectory._initialised
    passes, converted = [], []

    def counted(self: Trajectory) -> nn.Module:
        model = real(self)
        converted.append(is_converted(model))
        model.register_forward_pre_hook(lambda module, _: passes.append(1) if module.training else None)
        return model

    monkeypatch.setattr(Trajectory, "_initialised", counted)
    row = trajectory(method).row()
    assert "error" not in row
    expected = {"sgd": 2, "sgd_2x": 4, "extragradient": 4, "sam": 4, "sgd_converted": 2, "sam_converted": 4}[method]
    assert row["passes"] == expected
    assert sum(passes) == expected * 2  # two batches in each pass over the images
    assert [look["passes"] for look in row["measurements"]] == [expected / 2, expected]
    assert converted == [method.endswith("converted")]


@pytest.mark.parametrize(
    ("method", "epochs", "looks", "expected"),
    [
        ("sam", 20, 5, {4, 8, 12, 16, 20}),
        ("sgd_2x", 20, 5, {8, 16, 24, 32, 40}),
        ("sgd", 7, 3, {2, 5, 7}),
        ("sgd", 20, 1, {20}),
    ],
)
def test_looks_part_the_training_into_equal_pieces(method: str, epochs: int, looks: int, expected: set[int]) -> None:
    assert trajectory(method, epochs=epochs, looks=looks).measured_epochs == expected


def test_look_is_at_the_first_images_with_the_labels_that_are_trained_on(unseen: list[tuple[Any, ...]]) -> None:
    own = trajectory("sgd", network="lenet300", looks=1, noise=90, ascents=4)
    row = own.row()
    ((model, (x, y), ascents),) = unseen
    assert isinstance(model, nn.Module)
    assert ascents == 4
    assert torch.equal(x, own.data.examples(8))
    assert torch.equal(y, own.course.data.y_train[:8])
    assert not torch.equal(y, own.data.y_train[:8])
    assert row["measurements"] == [{"epoch": 2, "passes": 2, "sharpness": 1.0}]


@pytest.mark.usefixtures("unseen")
def test_radius_zero_is_sgd() -> None:
    assert trajectory("sam", rho=0.0).row()["losses"] == trajectory("sgd").row()["losses"]
    assert trajectory("sam").row()["losses"] != trajectory("sgd").row()["losses"]


def test_converted_network_moves_with_the_recipes_gamma_and_is_reversible() -> None:
    model = trajectory("sam_converted", network="resnet20_bn", gamma="3/4")._initialised()
    found = [(stream.name, stream.gamma, stream.backward) for stream in streams_of(model)]
    assert found == [(f"layer{stage}", 0.75, "reversible") for stage in (1, 2, 3)]


@pytest.mark.usefixtures("unseen")
def test_network_without_streams_is_a_row_that_fails() -> None:
    row = trajectory("sam_converted", network="lenet300").row()
    assert "error" in row
    assert row["measurements"] == []
