"""The quick version of benchmarks that no other test runs: it comes to its end, with a row for each thing compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("arguments", "key", "expected"),
    [
        (("gradinit", "fall"), "converted", {False: 2, True: 2}),
        (("structured",), "network", {"dense": 1, "masked": 2, "shrunk": 2}),
    ],
    ids=["gradinit", "structured"],
)
def test_quick_run(command: Callable[..., Any], arguments: tuple[str, ...], key: str, expected: dict[Any, int]) -> None:
    done = command("bench", *arguments, "--quick", "--output", "out", "--json")
    assert done.status == 0, done.err
    assert Counter(row[key] for row in json.loads(done.out)["rows"]) == expected
