"""Streams in half precision, whose state has words of 24 bits: gradients, passes that outgrow the word, memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.arithmetic.fixed_point import INT24, INT32
from momentumnet.core.state.exact_state import ExactState
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, ResidualMLP, Scaled

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


class Growing(ResidualMLP):
    """Its branch is multiplied by an attribute."""

    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.inner(x)


def rows(dtype: torch.dtype, count: int = 64) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(7)).to(dtype)


def network(depth: int, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(*(Growing() for _ in range(depth)))).to(dtype)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The words of all states that steps are made on."""
    found: list[Any] = []
    step = ExactState.step

    def watched(state: ExactState, *arguments: Any) -> Any:
        found.append(state.word)
        return step(state, *arguments)

    monkeypatch.setattr(ExactState, "step", watched)
    return found


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    net.zero_grad(set_to_none=True)
    net(x).float().square().mean().backward()
    return torch.cat([parameter.grad.double().flatten() for parameter in net.parameters()])


@HALVES
@pytest.mark.parametrize("gamma", [1 / 8, 0.9])
@pytest.mark.parametrize("depth", [4, 24])
def test_error_of_the_gradient_is_that_of_floats(
    depth: int, gamma: float, dtype: torch.dtype, words: list[Any]
) -> None:
    """Within a third of that of the same rule in floats with stored activations, both against float64."""
    model, x = network(depth, dtype), rows(dtype)
    floats: dict[str, Any] = {"arithmetic": "float", "backward": "stored", "gamma": gamma}
    exact = gradient(mn.convert(copy.deepcopy(model).double(), x.double(), **floats), x.double())
    plain = gradient(mn.convert(model, x, **floats), x)
    net = mn.convert(model, x, gamma=gamma)
    words.clear()
    for _ in range(2):
        ours = gradient(net, x)
        assert (ours - exact).norm() <= 1.33 * (plain - exact).norm()
    assert set(words) == {INT24}


@HALVES
@pytest.mark.parametrize("gamma", [1 / 8, 0.9])
@pytest.mark.parametrize("factor", [300.0, 1e4, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_pass_that_outgrows_the_word_is_made_over(
    place: int, factor: float, gamma: float, dtype: torch.dtype, words: list[Any]
) -> None:
    """With the bits of stored activations, in that pass and in those behind it."""
    outcomes = []
    for backward in ("stored", "reversible"):
        net, found = mn.convert(network(5, dtype), rows(dtype), backward=backward, gamma=gamma), []
        for value in (1.0, factor, 1.0, 1.0):
            net[0][place].factor = value
            words.clear()
            net.zero_grad(set_to_none=True)
            found.append(train_step(net, (rows(dtype),)))
            if value == factor == 1e4 and backward == "reversible":
                assert len(words) > 5, "some steps were made over"
        outcomes.append(found)
    for got, expected in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got.output, expected.output, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(got.gradients, expected.gradients, rtol=0, atol=0, equal_nan=True)


@HALVES
def test_a_store_of_the_whole_word_keeps_integers_of_32_bits(dtype: torch.dtype, words: list[Any]) -> None:
    nets = [mn.convert(network(6, dtype), rows(dtype), backward=b, gamma=0.99) for b in ("stored", "reversible")]
    words.clear()
    stored, reversible = (train_step(net, (rows(dtype),)) for net in nets)
    assert_same(reversible, stored)
    assert set(words) == {INT32}


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 20), (torch.float16, 20), (torch.float32, 29.5)], ids=str)
def test_bytes_of_a_forward_in_motion(dtype: torch.dtype, most: float) -> None:
    """The state, 8 bytes or 10, and beside it five tensors: a block's input and output, and what the block computes."""
    elements = 1 << 20
    net = mn.convert(nn.Sequential(*[Scaled().to(dtype)] * 4), streams=[""], gamma=1 / 8, final_velocity="drop")
    x = torch.randn(elements).to(dtype).requires_grad_()
    net(x).sum().backward()
    assert mn.measure_memory(lambda: net(x)).peak_bytes <= most * elements
