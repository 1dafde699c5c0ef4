"""Benchmarks of trainings that take a moment, and what they came to."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

TINY = ("--train-samples", "64", "--test-samples", "50", "--batch-size", "32", "--epochs", "2")


def rows_without(times: Collection[str], finished: Any) -> list[dict[str, Any]]:
    """The rows of a command that succeeded, without the keys that are never twice the same."""
    assert finished.status == 0, finished.err
    found = json.loads(finished.out)["rows"]
    return [{key: value for key, value in row.items() if key not in times} for row in found]
