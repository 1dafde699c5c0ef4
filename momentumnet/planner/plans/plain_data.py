"""Values of declared types from plain data, as JSON gives it: what does not fit is told by its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from fractions import Fraction
from typing import Any, get_args, get_origin, get_type_hints

_MEANT = {
    str: "text",
    bool: "true or false",
    int: "a whole number, 0 or more",
    float: "a number, 0 or more",
    type(None): "null",
    Fraction: "a fraction such as '1/8'",
}


def value_of(kind: Any, found: Any, place: str) -> Any:
    """A value of a type: of a dataclass, a tuple, text, a fraction or a number that is not negative, or one of several.

    Args:
        kind: the type.
        found: plain data.
        place: where it stands, for messages.

    Raises:
        ValueError: it is no such value; says where and what is meant.
    """
    if is_dataclass(kind):
        return _of_fields(kind, found, place)
    if get_origin(kind) is tuple:
        return _of_tuple(get_args(kind), found, place)
    kinds = get_args(kind) or (kind,)
    if Fraction in kinds and isinstance(found, str):
        try:
            return Fraction(found)
        except (ValueError, ZeroDivisionError):
            pass
    elif type(found) in kinds and not _is_no_size(found):
        return found
    elif float in kinds and type(found) is int and found >= 0:
        return float(found)
    raise ValueError(f"{place} has to be {' or '.join(_MEANT[kind] for kind in kinds)}, and is {found!r}")


def _is_no_size(found: Any) -> bool:
    return isinstance(found, (int, float)) and not (math.isfinite(found) and found >= 0)


def _of_fields(kind: Any, found: Any, place: str) -> Any:
    if not isinstance(found, dict):
        raise ValueError(f"{place} has to be an object with its values by name, and is {found!r}")
    kinds, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    strange = [name for name in found if name not in known]
    if strange:
        raise ValueError(f"{place} has {strange[0]!r}, which this version does not know")
    lacking = [name for name, one in known.items() if name not in found and one.default is MISSING]
    if lacking:
        raise ValueError(f"{place} has no {lacking[0]!r}")
    return kind(**{name: value_of(kinds[name], value, f"{place}.{name}") for name, value in found.items()})


def _of_tuple(kinds: Sequence[Any], found: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(found, (list, tuple)):
        raise ValueError(f"{place} has to be a list, and is {found!r}")
    if kinds[-1] is Ellipsis:
        kinds = [kinds[0]] * len(found)
    if len(kinds) != len(found):
        raise ValueError(f"{place} has to be a list of {len(kinds)} values, and is {found!r}")
    return tuple(
        value_of(kind, value, f"{place}[{at}]") for at, (kind, value) in enumerate(zip(kinds, found, strict=True))
    )
