"""What a row of ``bench lottery`` is about: network, initialisation, and how it is warmed up, rewound and stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row

SETTINGS = {"lr": "rate", "warmup_epochs": "warmup", "rewind_epochs": "rewound to", "dense_epochs": "dense"}
"""The keys in which rows of one network and initialisation may differ, beside the seed, and what columns call them."""

Key = tuple[Any, ...]
KEYS = ("model", "method", *SETTINGS)


def groups(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """The rows that came to their end, by their values of `KEYS`: a group's rows differ in their seeds alone."""
    return seeds.groups(seeds.done(rows), *KEYS)


def differing(rows: Sequence[Row]) -> list[str]:
    """The settings of which the rows have several values."""
    return [name for name in SETTINGS if len({row[name] for row in rows}) > 1]


def in_words(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What the row's settings of these names are."""
    forms = {
        "lr": "rate {:g}",
        "warmup_epochs": "warmup {}",
        "rewind_epochs": "rewound to {}",
        "dense_epochs": "dense to {}",
    }
    return [forms[name].format(row[name]) for name in names]


def named(row: Mapping[str, Any]) -> str:
    """What a row is called, but for its seed."""
    return ", ".join([row["model"], row["method"], *in_words(row, list(SETTINGS))])


def called(key: Key, names: Sequence[str]) -> str:
    """What a group is called, of its settings those of these names."""
    row = dict(zip(KEYS, key, strict=True))
    return ", ".join([row["model"], row["method"], *in_words(row, names)])
