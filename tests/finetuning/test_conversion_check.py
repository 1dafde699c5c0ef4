from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import conversion_check
from momentumnet.finetuning.conversion_check import LIMIT, SMALLEST, check


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def moved(name: str, by: float) -> nn.Module:
    net = network()
    with torch.no_grad():
        net.get_parameter(name).add_(by)
    return net


def test_equal_networks_agree_to_the_bit() -> None:
    found = check(network(), torch.randn(5, 4), stored=network, converted=network)
    assert found.passed
    assert set(found.errors) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert set(found.errors.values()) == {0.0}
    assert found.output_change == 0


class Masked(nn.Module):
    """Draws by NumPy and by Python, as masks of speech models are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.tensor(np.random.rand(*x.shape) > random.random() / 2)  # noqa: NPY002
        return self.inner(torch.where(mask, x, 0.0))


def test_networks_that_draw_by_numpy_are_given_the_same_numbers() -> None:
    found = check(Masked(), torch.randn(50, 4), stored=Masked, converted=Masked)
    assert found.passed
    assert set(found.errors.values()) == {0.0}


def test_errors_are_relative_to_each_parameter() -> None:
    x = torch.randn(5, 4)
    found = check(network(), x, stored=network, converted=lambda: moved("2.bias", 0.1))

    def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
        output = net.train()(x)
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(conversion_check.SEED))
        (output - target).square().mean().backward()
        return {name: value.grad for name, value in net.named_parameters() if value.grad is not None}

    expected, got = gradients(network()), gradients(moved("2.bias", 0.1))
    for name, error in found.errors.items():
        assert error == pytest.approx(float((got[name] - expected[name]).norm() / expected[name].norm()), rel=1e-4)
    assert found.worst[1] == max(found.errors.values())
    assert not found.passed
    with torch.no_grad():
        plain = network()(x)
    assert found.output_change == pytest.approx(float(torch.full_like(plain, 0.1).norm() / plain.norm()), rel=1e-4)


def test_a_gradient_that_is_rounding_is_measured_by_the_whole() -> None:
    expected = {"large": torch.ones(4).double(), "noise": torch.full((1,), 1e-12).double()}
    found = {"large": torch.ones(4).double(), "noise": torch.full((1,), 3e-12).double()}
    errors = conversion_check._errors(found, expected)
    assert errors["noise"] == pytest.approx(2e-12 / (2 * SMALLEST))
    assert errors["noise"] < LIMIT


@pytest.mark.parametrize("wrong", [{}, {"a": torch.tensor([math.nan])}, {"a": torch.ones(1), "b": torch.ones(1)}])
def test_what_is_missing_too_much_or_nan_does_not_pass(wrong: dict[str, torch.Tensor]) -> None:
    errors = conversion_check._errors(wrong, {"a": torch.ones(1)})
    found = conversion_check.Check({}, {**errors, "c": 1e-9}, 0.0)
    assert not found.passed
    assert found.worst[0] in ("a", "b")


def test_networks_without_gradients_are_refused() -> None:
    frozen = copy.deepcopy(network()).requires_grad_(False)
    with pytest.raises(UsageError, match="depends on its parameters"):
        check(frozen, torch.randn(5, 4), stored=lambda: frozen, converted=lambda: frozen)
