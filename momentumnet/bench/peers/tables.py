"""The tables of ``bench peers``: depth across, a line for each peer and gamma."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from momentumnet.bench.peers import runs
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table

FAILED, NOT_FINITE = "fails", "not finite"
ERROR_NOTE = (
    "Relative L2 error of the parameter gradients of residual tanh layers of width 64, float32, against the same rule "
    "by the same library with stored activations. In the line 'float32 backprop': the plain rule in PyTorch against "
    "float64, the error that everybody has."
)
COST_NOTE = (
    "Peak memory and time of a training step, as multiples of those of the same rule in plain PyTorch with stored "
    "activations; each peer took turns with that rule in its own process, one thread."
)
NOT_FINITE_NOTE = (
    "'not finite': the gradient holds infinities or NaN, which is what the inverse of that library comes to there."
)
RULES_NOTE = (
    "With a gamma: v <- gamma v + (1 - gamma) f(x), x <- x + v. Additive coupling, which has none: "
    "(a, b) <- (b, a + f(b))."
)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Gradient errors, and costs."""
    floor = _floor(rows)
    errors = [*_lines(rows, _error), *_lines(floor, _error)]
    endless = [NOT_FINITE_NOTE] if any(map(_is_not_finite, rows)) else []
    columns = ("library", "gamma", *[f"depth {depth}" for depth in _depths(rows)])
    return [
        Table("Gradient error", columns, errors, notes=(ERROR_NOTE, RULES_NOTE, *endless, *_failures(rows))),
        Table("Memory × and time × of stored activations", columns, _lines(rows, _cost), notes=(COST_NOTE,)),
    ]


def _depths(rows: Sequence[Row]) -> list[int]:
    return sorted({row["depth"] for row in rows})


def _lines(rows: Sequence[Row], cell: Callable[[Row], str]) -> list[tuple[str, ...]]:
    cells = {(row["peer"], row["gamma"], row["depth"]): cell(row) for row in rows}
    return [
        (
            peer,
            "–" if gamma is None else f"{gamma:g}",
            *[cells.get((peer, gamma, depth), "") for depth in _depths(rows)],
        )
        for peer, gamma in dict.fromkeys((row["peer"], row["gamma"]) for row in rows)
    ]


def _error(row: Row) -> str:
    value = row.get("gradient_error")
    if value is None:
        return NOT_FINITE if _is_not_finite(row) else FAILED
    return "0" if value == 0 else f"{value:.0e}"


def _is_not_finite(row: Row) -> bool:
    """Whether the row shows what the rule comes to in floats, and no fault of the program."""
    return row.get("error") == runs.NOT_FINITE


def _cost(row: Row) -> str:
    if "step_seconds" not in row:
        return NOT_FINITE if _is_not_finite(row) else FAILED
    memory = row["peak_bytes"] / row["plain_peak_bytes"]
    return f"{memory:.2f}, {row['step_seconds'] / row['plain_step_seconds']:.1f}"


def _floor(rows: Sequence[Row]) -> list[Row]:
    """The error of the plain rule itself, from whichever peer was measured beside it."""
    known: dict[tuple[float, int], float] = {}
    for row in rows:
        error = row.get("plain_float64_error")
        if error is not None and row["gamma"] is not None:
            known.setdefault((row["gamma"], row["depth"]), error)
    return [
        {"peer": "float32 backprop", "gamma": gamma, "depth": depth, "gradient_error": error}
        for (gamma, depth), error in known.items()
    ]


def _failures(rows: Sequence[Row]) -> list[str]:
    """A line for each error, with the networks that it was seen on."""
    seen: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "error" in row and not _is_not_finite(row):
            gamma = "" if row["gamma"] is None else f" at {row['gamma']:g}"
            seen.setdefault((row["peer"], row["error"]), []).append(f"{row['depth']}{gamma}")
    return [f"{peer} fails at depth {', '.join(where)}: {error}" for (peer, error), where in seen.items()]
