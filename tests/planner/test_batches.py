"""The largest batch that fits: a plan is found for it, and none for one more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.planner.batch import GROWTH, largest_fitting, largest_tried
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.rescaled import rescaled
from momentumnet.planner.searching.search import within
from tests.models import Chain, ResidualMLP
from tests.planner.networks import Plain, encoder, images, tokens
from tests.planner.searching.profiles import random_profile

ABOVE = 300


def with_work_that_grows_faster(profile: Profile, batch: int) -> Profile:
    """As attention's does that is not fused, or a library's that takes another algorithm."""
    made = rescaled(profile, batch)
    units = [replace(u, cost=replace(u.cost, backward_peak=u.cost.backward_peak + batch**2 // 40)) for u in made.units]
    return replace(made, units=tuple(units))


@pytest.mark.parametrize("grown", [rescaled, with_work_that_grows_faster])
@pytest.mark.parametrize("seed", range(3))
def test_as_trying_all_batches(seed: int, grown: Callable[[Profile, int], Profile]) -> None:
    profile = random_profile(seed, 1)
    tried: list[int] = []

    def options_of(batch: int) -> list[Options]:
        tried.append(batch)
        return [Options(grown(profile, batch))]

    fits = {
        limit: [within(*options_of(batch), limit) is not None for batch in range(1, 65)] for limit in (150, 900, 4000)
    }
    for limit, found in fits.items():
        tried.clear()
        largest = largest_fitting(options_of, limit, 64)
        assert largest == sum(found)
        assert found == [True] * largest + [False] * (64 - largest)
        assert len(tried) <= 12
        assert all(batch <= GROWTH * max(2, largest) for batch in tried)


def test_batches_that_the_memory_does_not_suffice_to_measure_do_not_fit() -> None:
    profile = random_profile(0, 0)

    def measured(batch: int, most: int) -> list[Options]:
        return [Options(rescaled(profile, batch))] if batch <= most else []

    assert largest_fitting(lambda batch: measured(batch, 37), 1 << 40, ABOVE) == 37
    assert largest_fitting(lambda batch: measured(batch, ABOVE), 1 << 40, ABOVE) == ABOVE


def test_what_was_predicted_is_tried_and_corrected() -> None:
    """However far it is from the truth; up to a fifth of it with few trials."""
    for predicted in (1, 2, 7, 64, 194):
        for true in range(ABOVE + 1):
            tried: list[int] = []

            def fits(batch: int, true: int = true, tried: list[int] = tried) -> bool:
                tried.append(batch)
                return batch <= true

            assert largest_tried(predicted, fits, ABOVE) == true
            assert true == ABOVE or true + 1 in tried
            if true + 1 <= 1.2 * predicted:
                assert len(tried) <= 2 + predicted.bit_length()
            assert max(tried) <= max(predicted, 4 * true)
        assert largest_tried(predicted, lambda batch: True, predicted) == predicted


@pytest.mark.parametrize(("build", "make_example"), [(encoder, tokens), (Plain, images)])
def test_a_plan_is_found_for_it_and_none_for_one_more(
    build: Callable[[], nn.Module], make_example: Callable[[int], Tensor]
) -> None:
    torch.manual_seed(0)
    model = build().train()
    before = [parameter.clone() for parameter in model.parameters()]
    budget = int(mn.plan(model, make_example(7), budget="least").peak * 1.2)
    largest = mn.largest_batch(model, make_example, budget)
    assert largest >= 7
    assert mn.plan(model, make_example(largest), budget=budget).measured_peak <= budget
    with pytest.raises(mn.ConversionError, match="no choice fits"):
        mn.plan(model, make_example(largest + 1), budget=budget)
    assert mn.largest_batch(model, make_example, budget, most=5) == 5
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_one_sample_that_does_not_fit_is_a_budget_that_is_too_small() -> None:
    torch.manual_seed(0)
    model = encoder().train()
    messages = []
    for call in (mn.largest_batch, lambda *args: mn.plan(args[0], args[1](1), budget=args[2])):
        with pytest.raises(mn.ConversionError, match=r"no choice fits a budget of 200 KiB\. The least is") as caught:
            call(model, tokens, "200KiB")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_without_the_memory_to_measure_anything() -> None:
    class Full(Chain):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("the device is full")

    model = Full([ResidualMLP() for _ in range(3)])
    with pytest.raises(mn.ConversionError, match="not the memory to look at a step of a batch of 1"):
        mn.largest_batch(model, lambda batch: torch.randn(batch, 16), "8MiB")


def test_a_batch_for_which_the_cpu_has_not_the_memory_does_not_fit() -> None:
    class Huge(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 8:
                torch.empty(1 << 50, dtype=torch.uint8)
            return super().forward(x)

    model = Chain([Huge() for _ in range(3)]).train()
    assert mn.largest_batch(model, lambda batch: torch.randn(batch, 16), "8MiB") == 8


def test_an_error_of_a_part_is_none_of_the_memory() -> None:
    """Behind the prediction, while batches are tried out: it was taken for a batch that does not fit."""

    seen: set[int] = set()
    again: list[int] = []

    class Positions(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            made = x.grad_fn
            by_itself = made is not None and not any(node and node.next_functions for node, _ in made.next_functions)
            if again and by_itself:
                raise RuntimeError("the positions are over")
            return super().forward(x)

    def make_example(batch: int) -> Tensor:
        again[:] = seen & {batch}  # one that was predicted, and is tried out now
        seen.add(batch)
        return torch.randn(batch, 16)

    with pytest.raises(mn.ConversionError, match="the positions are over"):
        mn.largest_batch(Chain([Positions() for _ in range(3)]).train(), make_example, "100KiB")


def test_nor_is_an_error_of_an_example_that_is_made_again() -> None:
    seen: set[int] = set()

    def make_example(batch: int) -> Tensor:
        if batch in seen:
            raise RuntimeError("the data are over")
        seen.add(batch)
        return torch.randn(batch, 16)

    with pytest.raises(RuntimeError, match="the data are over"):
        mn.largest_batch(Chain([ResidualMLP() for _ in range(3)]).train(), make_example, "100KiB")


def test_where_one_sample_is_too_few_for_batch_norms() -> None:
    blocks = Chain([nn.Sequential(nn.BatchNorm1d(16), ResidualMLP(16)) for _ in range(2)])
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), blocks).train()
    with pytest.raises(mn.ConversionError, match="no choice fits") as caught:
        mn.largest_batch(model, lambda batch: torch.randn(batch, 16), "1KiB")
    assert "Expected more than 1 value per channel" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("make_example", "options", "reason"),
    [
        (
            lambda batch: tokens(3),
            {},
            r"make_example must make .* got the same shapes \[\(3, 48, 64\)\] for 2 and",
        ),
        (tokens, {"budget": "least"}, "budget must be a number of bytes for the largest batch, got 'least'"),
        (tokens, {"budget": "much"}, "budget must be a positive number of bytes"),
        (tokens, {"most": 0}, "most must be a batch size, 1 or more, got 0"),
    ],
)
def test_what_cannot_be_asked_for(make_example: Callable[[int], Tensor], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        mn.largest_batch(encoder().train(), make_example, **{"budget": "64MiB", **options})
