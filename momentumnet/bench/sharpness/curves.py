"""The rows of ``bench sharpness`` as lines: quantities in the course of the trainings, and against rho."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.sharpness.methods import SAM

Lines = dict[str, dict[float, list[float]]]


def at_rho(rows: Sequence[Row], rho: float) -> list[Row]:
    """Of the methods with a radius those rows that have this one; all of the others."""
    return [row for row in rows if row["rho"] in (None, rho)]


def with_every_rho(rows: Sequence[Row]) -> list[Row]:
    """The rows of the method that is trained with several radii."""
    return [row for row in rows if row["method"] == SAM]


def over_passes(rows: Sequence[Row], rho: float, quantity: Callable[[Row], float]) -> Lines:
    """By method and by passes over the training images, a quantity of the measurements of each seed."""
    found: Lines = {}
    for row in seeds.done(at_rho(rows, rho)):
        for look in row["measurements"]:
            found.setdefault(row["method"], {}).setdefault(look["passes"], []).append(quantity(look))
    return found


def over_rho(rows: Sequence[Row], quantity: Callable[[Row], float]) -> Lines:
    """By rho, a quantity of the trainings with SAM of each seed, in a single line."""
    found: Lines = {}
    for row in seeds.done(with_every_rho(rows)):
        found.setdefault(SAM, {}).setdefault(row["rho"], []).append(quantity(row))
    return found
