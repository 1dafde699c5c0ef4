"""The curves that the figures of ``bench lottery`` show."""

from __future__ import annotations

from collections.abc import Sequence

from momentumnet.bench.lottery import cases
from momentumnet.bench.lottery.tables import final, rounds_of
from momentumnet.bench.reporting.results import Row
from momentumnet.prune import TICKET

Curves = dict[str, dict[str, dict[float, list[float]]]]  # by panel, line and place, the accuracies of the seeds


def by_arm(rows: Sequence[Row]) -> Curves:
    """By network and settings, arm and sparsity (%); all arms begin with the dense network."""
    found: Curves = {}
    names = cases.differing(rows)
    for key, own in cases.groups(rows).items():
        rounds = rounds_of(own)
        lines = found.setdefault(cases.called(key, names), {arm: {} for arm in rounds[max(rounds)]})
        for arms in rounds.values():
            place = 100 * arms[TICKET][0]["sparsity"]
            for arm in lines:
                lines[arm][place] = [final(training) for training in arms.get(arm, arms[TICKET])]
    return found


def by_network(rows: Sequence[Row]) -> Curves:
    """The tickets by initialisation and settings, network and sparsity (%); nothing where no two networks compare."""
    found: Curves = {}
    names = cases.differing(rows)
    for key, own in cases.groups(rows).items():
        model, heading = cases.called(key, names).split(", ", 1)
        line = found.setdefault(heading, {}).setdefault(model, {})
        for arms in rounds_of(own).values():
            line[100 * arms[TICKET][0]["sparsity"]] = [final(training) for training in arms[TICKET]]
    return {heading: lines for heading, lines in found.items() if len(lines) > 1}


def by_dense_share(rows: Sequence[Row], epochs: int) -> Curves:
    """The arms' accuracies of the last round by the share of its steps (%) at which the dense training ended.

    Args:
        rows: The rows.
        epochs: Those of a training that is not stopped.

    Returns:
        By network and other settings, arm and share; nothing where no two shares compare.
    """
    found: Curves = {}
    names = [name for name in cases.differing(rows) if name != "dense_epochs"]
    for key, own in cases.groups(rows).items():
        rounds = rounds_of(own)
        last = rounds[max(rounds)]
        heading = f"{cases.called(key, names)}, {100 * last[TICKET][0]['sparsity']:.0f} % gone"
        for arm, trained in last.items():
            line = found.setdefault(heading, {}).setdefault(arm, {})
            line[100 * own[0]["dense_epochs"] / epochs] = [final(training) for training in trained]
    return {heading: lines for heading, lines in found.items() if len(lines[TICKET]) > 1}
