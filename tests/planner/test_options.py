"""Options that a plan cannot have are refused, also where nothing of the model would have looked at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, Chain, ResidualMLP


def rows(batch: int = 4) -> Tensor:
    return torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return Chain([ResidualMLP() for _ in range(3)])


WRONG = [
    ("arithmetic", "fixed", "'exact', 'float'"),
    ("backward", "recomputed", "'auto', 'reversible', 'checkpointed', 'stored'"),
    ("final_velocity", "keep", "'flush', 'drop'"),
]


@pytest.mark.parametrize("given", [{}, {"budget": "least"}, {"budget": "1GiB"}, {"spare": 1 << 20}], ids=str)
@pytest.mark.parametrize(("option", "value", "allowed"), WRONG)
def test_a_choice_that_there_is_not(option: str, value: str, allowed: str, given: dict[str, Any]) -> None:
    """A plan at gamma 0 makes no stream, so that no stream would refuse it."""
    for make in (mn.convert, mn.plan):
        if make is mn.plan and option == "final_velocity":
            continue
        with pytest.raises(ValueError, match=f"{option} must be one of {allowed}, got '{value}'"):
            make(network(), rows(), **{option: value}, **given)


def test_a_choice_that_there_is_not_of_a_plan_that_is_followed() -> None:
    plan = mn.plan(network(), rows(), budget="1GiB", gamma=0)
    with pytest.raises(ValueError, match="final_velocity must be one of"):
        mn.convert(network(), plan=plan, final_velocity="keep")


@pytest.mark.parametrize("plan", ["plan.json", {}, 3])
def test_something_else_than_a_plan(plan: Any) -> None:
    with pytest.raises(mn.ConversionError, match=rf"plan=.*TrainingPlan.*got a {type(plan).__name__}"):
        mn.convert(network(), plan=plan)


def test_a_plan_without_a_budget_is_none_to_follow() -> None:
    with pytest.raises(mn.ConversionError, match=r"plan=.*TrainingPlan.*budget=.*got a Plan$"):
        mn.convert(network(), plan=mn.plan(network(), rows()))  # type: ignore[arg-type]


LOSSES: list[tuple[Any, str]] = [
    ("cross_entropy", "'cross_entropy'"),
    (lambda output: output, r"shape \(4, \d+\)"),
    (lambda output: 3.0, r"got 3\.0"),
    (lambda output: output.sum().detach(), "what it gives has none"),
]


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.functional.mse_loss, lambda output, targets: output.sum()])
def test_a_loss_that_wants_targets_is_told_how_they_are_given(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot be called with that alone.*loss=lambda output: criterion") as refused:
        mn.plan(network(), rows(), budget="least", loss=loss)
    assert "missing a required argument" in str(refused.value)


@pytest.mark.parametrize(("loss", "got"), LOSSES)
def test_something_else_than_a_loss(loss: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"loss must be a function of the model's output.*{got}"):
        mn.plan(network(), rows(), budget="least", loss=loss)
    with pytest.raises(ValueError, match="loss must be a function of the model's output"):
        mn.largest_batch(network(), rows, "1MiB", loss=loss)


class Returning(nn.Module):
    """Returns what a function makes of a network's output."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.function = network(), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.inner(x))


@pytest.mark.parametrize("function", [torch.detach, lambda output: output > 0, lambda output: None])
def test_a_model_that_returns_nothing_to_differentiate(function: Callable[[Tensor], Any]) -> None:
    with pytest.raises(mn.ConversionError, match="no step can be planned"):
        mn.plan(Returning(function), rows(), budget="least")
    with pytest.raises(mn.ConversionError, match="no step can be planned"):
        mn.convert(Returning(function), rows(), budget="1GiB")
