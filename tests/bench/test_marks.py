"""What tables say of rows that show what a method cannot do, and of those that fail."""

from __future__ import annotations

from typing import Any

from momentumnet.bench.peers import tables as peers
from momentumnet.bench.step.table import REFUSED_NOTE, table

LOST = "block 'blocks.5' of stream 'blocks' could not be reconstructed, so its gradient would be wrong"


def test_what_floats_lose_is_refused_and_an_exact_row_that_does_so_fails() -> None:
    rows = [{"network": "n", "method": method, "error": LOST} for method in ("momentum 1/8 float", "momentum 1/8")]
    rows.append({"network": "n", "method": "momentum 9/10 float", "error": "out of memory"})
    shown = table(rows)
    assert [cells[2] for cells in shown.rows] == ["refused", "fails", "fails"]
    assert REFUSED_NOTE in shown.notes
    assert shown.notes[-2:] == (f"n, momentum 1/8: {LOST}", "n, momentum 9/10 float: out of memory")
    assert REFUSED_NOTE not in table(rows[1:]).notes


def test_gradients_without_end_are_no_failures_of_a_program() -> None:
    errors = ("the gradient is not finite", "ZeroDivisionError: float division by zero")
    rows: list[dict[str, Any]] = [
        {"peer": "p", "gamma": 0.5, "depth": depth, "error": error} for depth, error in enumerate(errors)
    ]
    found, _ = peers.tables(rows)
    assert list(found.rows[0]) == ["p", "0.5", "not finite", "fails"]
    assert peers.NOT_FINITE_NOTE in found.notes
    assert found.notes[-1] == "p fails at depth 1 at 0.5: ZeroDivisionError: float division by zero"
