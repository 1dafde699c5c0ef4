"""The tables of ``bench sam``, and its rows in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.bench.sam.training import PROBES
from momentumnet.bench.trainings.optimizer_training import RADIUS
from momentumnet.bench.trainings.recipe import described


def named(row: Row) -> str:
    """What a row is called, but for its seed."""
    return f"{row['model']}, {row['noise']:g} % wrong labels, {row['method']}"


def outcome(row: Row) -> str:
    """What a row came to, in words."""
    return (
        f"accuracy {row['acc_final']:.2f}, best {row['acc_best']:.2f}, sharpness {row['sharpness']:.4f}, "
        f"eigenvalue {row['eigenvalue']:.2f}, {row['seconds']:.0f} s"
    )


def curves(rows: Sequence[Row]) -> dict[str, dict[str, dict[float, list[float]]]]:
    """By network, by method and by share of wrong labels (%), the final accuracies of the seeds."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    for row in seeds.done(rows):
        lines = found.setdefault(row["model"], {})
        lines.setdefault(row["method"], {}).setdefault(row["noise"], []).append(row["acc_final"])
    return found


def tables(rows: Sequence[Row], settings: dict[str, Any]) -> list[Table]:
    """One for each model and share of wrong labels; the notes stand below the last."""
    columns = ("method", "passes", "accuracy", "best", "sharpness", "eigenvalue", "step", "seeds")
    groups = seeds.groups(rows, "model", "noise")
    found = []
    for number, ((model, noise), own) in enumerate(groups.items(), start=1):
        methods = seeds.groups(own, "method")
        reference = _step_seconds(methods.get(("sgd",), []))
        cells = [(method, *_figures(same, reference)) for (method,), same in methods.items()]
        notes = _notes(rows, settings) if number == len(groups) else []
        found.append(Table(f"{model}, {noise:g} % of the training labels wrong", columns, cells, notes=notes, left=1))
    return found


def _figures(rows: Sequence[Row], reference: float | None) -> tuple[str, ...]:
    """Passes, figures of the rows that came to their end, time of a step to ``reference``."""
    done = seeds.done(rows)
    passes = str(rows[0]["passes"])
    if not done:
        return (passes, *["fails"] * 4, "", seeds.seeds(rows))
    accuracies = [seeds.mean([row[key] for row in done]) for key in ("acc_final", "acc_best")]
    flatness = [
        f"{statistics.mean(row[key] for row in done):{form}}"
        for key, form in (("sharpness", ".4f"), ("eigenvalue", ".2f"))
    ]
    seconds = _step_seconds(rows)
    step = "" if seconds is None or reference is None else f"{seconds / reference:.2f}"
    return (passes, *accuracies, *flatness, step, seeds.seeds(rows))


def _step_seconds(rows: Sequence[Row]) -> float | None:
    """Of a step: median in each row, median of these."""
    seconds = [row["step_seconds"] for row in seeds.done(rows)]
    return statistics.median(seconds) if seconds else None


def _notes(rows: Sequence[Row], settings: dict[str, Any]) -> list[str]:
    return [
        described(settings),
        f"rho {settings['rho']:g} for sam, {settings['asam_rho']:g} for asam. passes: forward and backward passes over "
        "the training images; sgd_2x has twice the epochs.",
        "Wrong labels: an exact share of the training labels, drawn by the seed, each made one of the other classes, "
        "all equally likely. Test labels are right.",
        "accuracy: on the test images (%) after the last epoch, best: after the best one; mean and standard deviation "
        "over the seeds. Of sharpness and eigenvalue the mean.",
        f"sharpness: rise of the training loss to the worst point found at distance {RADIUS:g}; eigenvalue: largest "
        f"one of the Hessian. Both at the end, in eval mode, on {min(PROBES, settings['train_samples'])} training "
        "images, always the same ones, not augmented, with the labels that were trained on.",
        "step: median time of a step, its passes included, to that of sgd in the same table.",
        *seeds.failures(rows, named),
    ]
