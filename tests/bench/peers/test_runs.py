from __future__ import annotations

from pathlib import Path

from momentumnet.bench.peers import runs
from momentumnet.bench.peers.runs import Peer
from tests.bench.peers.fake import write_fake


def test_a_process_that_ends_keeps_the_rows_that_it_wrote(tmp_path: Path) -> None:
    settings = {"device": "cpu", "width": 4, "batch": 2, "repeats": 1, "threads": 1}
    fake = write_fake(tmp_path)
    rows = runs.measure(Peer("fake", fake, "momentum"), [(2, 0.5), (4, 0.5), (2, 0.9)], settings, None)
    assert rows[0]["step_seconds"] > 0
    assert [row["error"] for row in rows[1:]] == ["ended with status 7: "] * 2


def test_gradients_that_are_not_finite_are_an_error() -> None:
    row = runs._finite({"gradient_error": float("nan"), "peak_bytes": 1})
    assert row == {"gradient_error": None, "peak_bytes": 1, "error": "the gradient is not finite"}
