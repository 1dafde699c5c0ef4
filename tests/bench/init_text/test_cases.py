"""The search of ``bench init-text``: what is tried, and which of it the trainings take."""

from __future__ import annotations

from typing import Any

from momentumnet.bench.init_text.cases import chosen, optimizer_cases, search_cases
from momentumnet.bench.init_text.methods import Choice, Grid

GRID = Grid(taus=(0.1, 0.2), etas=(1.0,), falls=(10.0,), metainit_taus=(0.3,))
RATES = {"adam": 0.01, "sgd": 0.5}


def searched(loss: float | None, tau: float, **changes: Any) -> dict[str, Any]:
    row = {"part": "search", "network": "post-norm", "method": "gradinit", "init_for": "adam", "tau": tau}
    failed = {"error": "diverged"} if loss is None else {}
    return {**row, "eta": 1.0, "fall": 10.0, "validation": loss, **failed, **changes}


def case(**changes: Any) -> dict[str, Any]:
    return {"network": "post-norm", "method": "gradinit", "init_for": "adam", **changes}


def test_gradinit_is_searched_with_the_optimizer_that_it_is_for_at_its_rate() -> None:
    found = search_cases(optimizer_cases("post-norm", RATES, range(3)), GRID, RATES)
    assert [(own["init_for"], own["optimizer"], own["rate"], own["tau"]) for own in found] == [
        ("sgd", "sgd", 0.5, 0.1),
        ("sgd", "sgd", 0.5, 0.2),
        ("adam", "adam", 0.01, 0.1),
        ("adam", "adam", 0.01, 0.2),
    ]
    assert {own["seed"] for own in found} == {1000}


def test_least_loss_of_the_same_network_and_optimizer_is_chosen() -> None:
    rows = [
        searched(3.0, 0.1),
        searched(2.0, 0.2),
        searched(1.0, 0.1, init_for="sgd"),
        searched(1.5, 0.2, init_for="sgd"),
        searched(0.5, 0.1, network="pre-norm"),
        searched(0.1, 0.1, part="train"),
        searched(0.1, 0.4),  # of a grid that was tried before
    ]
    assert chosen(rows, case(), GRID) == Choice(0.2, 1.0, 10.0)
    assert chosen(rows, case(init_for="sgd"), GRID) == Choice(0.1, 1.0, 10.0)
    assert chosen(rows, case(network="pre-norm"), GRID) == Choice(0.1, 1.0, 10.0)


def test_first_is_taken_where_all_fail_and_the_only_one_without_a_search() -> None:
    assert chosen([searched(None, 0.2)], case(), GRID) == Choice(0.1, 1.0, 10.0)
    assert chosen([], case(method="metainit", init_for=None), GRID) == Choice(0.3)
    assert chosen([], case(method="plain", init_for=None), GRID) is None
