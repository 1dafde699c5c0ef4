"""Results as JSON knows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def in_json(value: Any) -> Any:
    """Plain values with null for NaN and infinities, which readers of JSON other than Python's refuse.

    Example:
        >>> in_json({"loss": float("nan"), "rows": [1.0, "a"]})
        {'loss': None, 'rows': [1.0, 'a']}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: in_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_json(item) for item in value]
    return value
