"""Which rows ``bench init-text`` has: trainings, and before them the search for options of what learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from momentumnet.bench.init_text.methods import ADAM, GRADINIT, LEARNED, PLAIN, SGD, Choice, Grid, suits
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.seeds import Case, done

SEARCH, TRAIN, COST = "search", "train", "cost"
SEARCH_SEED = 1000  # none of those that are reported


def curve_cases(
    networks: Sequence[str], methods: Sequence[str], rates: Sequence[float], seeds: Sequence[int]
) -> list[Case]:
    """Each network with each method that is for it, at each learning rate of Adam, from each seed."""
    return [
        _case(network, method, ADAM if method == GRADINIT else None, ADAM, rate, seed)
        for network in networks
        for rate in rates
        for method in methods
        if suits(network, method)
        for seed in seeds
    ]


def optimizer_cases(network: str, rates: Mapping[str, float], seeds: Sequence[int]) -> list[Case]:
    """Plain, and GradInit for each optimizer; each trained with each optimizer, at the rate of that one."""
    return [
        _case(network, method, init_for, optimizer, rates[optimizer], seed)
        for method, init_for in ((PLAIN, None), (GRADINIT, SGD), (GRADINIT, ADAM))
        for optimizer in (SGD, ADAM)
        for seed in seeds
    ]


def _case(network: str, method: str, init_for: str | None, optimizer: str, rate: float, seed: int) -> Case:
    named = {"network": network, "method": method, "init_for": init_for, "optimizer": optimizer}
    return {"part": TRAIN, **named, "rate": rate, "seed": seed}


def search_cases(cases: Sequence[Case], grid: Grid, rates: Mapping[str, float]) -> list[Case]:
    """What has to be tried before these trainings: nothing where there is but one choice.

    Options are searched once for each network, initialisation and optimizer that it is for, by trainings with this
    optimizer, at its rate in ``rates``.
    """
    wanted: dict[tuple[str, str, str], None] = {}
    for case in cases:
        if case["method"] in LEARNED:
            wanted[case["network"], case["method"], case["init_for"] or ADAM] = None
    found = []
    for network, method, optimizer in wanted:
        choices = grid.choices(method)
        init_for = optimizer if method == GRADINIT else None
        base = _case(network, method, init_for, optimizer, rates[optimizer], SEARCH_SEED)
        if len(choices) > 1:
            found += [{**base, "part": SEARCH, **vars(choice)} for choice in choices]
    return found


def chosen(rows: Sequence[Row], case: Case, grid: Grid) -> Choice | None:
    """The options of an initialisation that learns: those whose training in the search had the least validation loss.

    Where none came to its end it is the first of the grid; None for a method that has no options.
    """
    choices = grid.choices(case["method"])
    if len(choices) < 2:
        return choices[0] if choices else None
    searched = [
        row
        for row in done(rows)
        if row["part"] == SEARCH
        and all(row[name] == case[name] for name in ("network", "method", "init_for"))
        and Choice.of(row) in choices
    ]
    if not searched:
        return choices[0]
    return Choice.of(min(searched, key=lambda row: float(row["validation"])))
