"""The tables of ``bench sharpness``, and its rows in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.bench.sharpness.curves import at_rho, with_every_rho
from momentumnet.bench.sharpness.measure import EIGENVALUES, TOLERANCE
from momentumnet.bench.sharpness.training import CONVERSION
from momentumnet.bench.trainings.recipe import described

FIGURES = ("accuracy", "best", "loss", "first step", "sharpness", "eigenvalue 1", f"eigenvalue {EIGENVALUES}")


def named(row: Row) -> str:
    """What a row is called, but for its seed."""
    radius = "" if row["rho"] is None else f", rho {row['rho']:g}"
    return f"{row['model']}, {row['method']}{radius}"


def outcome(row: Row) -> str:
    """What a row came to, in words."""
    last = row["measurements"][-1]
    return (
        f"accuracy {row['acc_final']:.2f}, best {row['acc_best']:.2f}, sharpness {last['sharpness']:.4f}, "
        f"largest eigenvalue {last['eigenvalues'][0]:.2f}, {row['seconds']:.0f} s"
    )


def tables(rows: Sequence[Row], settings: dict[str, Any]) -> list[Table]:
    """For each model one by method and, where there are several, one by rho; the notes stand below the last."""
    found = []
    for (model,), own in seeds.groups(rows, "model").items():
        trained = f"{model}, {settings['noise']:g} % of the training labels wrong"
        methods = seeds.groups(at_rho(own, settings["rho"]), "method", "passes")
        cells = [(method, str(passes), *_figures(same)) for (method, passes), same in methods.items()]
        found.append(Table(trained, ("method", "passes", *FIGURES, "seeds"), cells, left=1))
        radii = seeds.groups(with_every_rho(own), "rho")
        if len(radii) > 1:
            cells = [(f"{rho:g}", *_figures(same)) for (rho,), same in sorted(radii.items())]
            found.append(Table(f"{trained}: SAM by rho", ("rho", *FIGURES, "seeds"), cells, left=1))
    if found:
        found[-1] = dataclasses.replace(found[-1], notes=_notes(rows, settings))
    return found


def _figures(rows: Sequence[Row]) -> tuple[str, ...]:
    done = seeds.done(rows)
    if not done:
        return (*["fails"] * len(FIGURES), seeds.seeds(rows))
    last = [row["measurements"][-1] for row in done]
    return (
        *(seeds.mean([row[key] for row in done]) for key in ("acc_final", "acc_best")),
        seeds.mean([row["losses"][-1] for row in done], ".3f"),
        *(seeds.mean([look[key] for look in last], ".4f") for key in ("first_step", "sharpness")),
        *(seeds.mean([look["eigenvalues"][place] for look in last]) for place in (0, -1)),
        seeds.seeds(rows),
    )


def _notes(rows: Sequence[Row], settings: dict[str, Any]) -> list[str]:
    return [
        described(settings),
        f"rho {settings['rho']:g} where a table does not say it. Converted networks: momentumnet.convert at gamma "
        f"{settings['gamma']}, final velocity: {CONVERSION['final_velocity']}, before the training. passes: forward "
        "and backward passes over the training images; sgd_2x has twice the epochs.",
        "accuracy: on the test images (%) after the last epoch, best: after the best one; loss: of the training, in "
        "the last epoch. Mean and standard deviation over the seeds, here and elsewhere.",
        f"After the last epoch, in eval mode, on {settings['probes']} training images (always the same ones, not "
        f"augmented, with the labels that were trained on): first step, rise of the training loss by SAM's step of "
        f"length {settings['radius']:g}; sharpness, rise to the highest point found at that distance or below, from "
        f"{settings['ascents']} ascents; eigenvalues of the Hessian, the largest one and number {EIGENVALUES}.",
        *_unconverged(rows),
        *seeds.failures(rows, named),
    ]


def _unconverged(rows: Sequence[Row]) -> list[str]:
    looks = [look for row in rows for look in row["measurements"]]
    count = sum(not look["converged"] for look in looks)
    return [f"In {count} of {len(looks)} measurements the eigenvalues did not converge to {TOLERANCE:g}."] * (count > 0)
