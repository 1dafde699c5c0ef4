"""The couplings of `momentumnet.convert` by name, and as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from momentumnet.core.rules.bdia import Bdia
from momentumnet.core.rules.dr2net import Dr2Net
from momentumnet.core.rules.two_step import TwoStep
from momentumnet.errors import ConversionError

MOMENTUM = "momentum"
_RULES: dict[str, type[Bdia | Dr2Net]] = {"bdia": Bdia, "dr2net": Dr2Net}
NAMES = (MOMENTUM, *_RULES)


def rule_of(coupling: str | Dr2Net) -> TwoStep | None:
    """The rule that is meant; None for momentum, whose rule goes by gamma.

    Raises:
        ConversionError: a rule that does not keep a pretrained network.
        ValueError: there is no such rule.
    """
    if type(coupling) is Dr2Net:  # a subclass could not be described
        return coupling
    if coupling == "additive":
        raise ConversionError(
            "coupling='additive' (RevNet) cuts a stream into two halves, each of which sees the other alone: no "
            "weights of a residual network fit it. Build momentumnet.ReversibleSequential of its functions, and train "
            f"it from scratch; convert takes {_listed()}"
        )
    if not isinstance(coupling, str) or coupling not in NAMES:
        raise ValueError(f"coupling must be {_listed()}, got {coupling!r}")
    return None if coupling == MOMENTUM else _RULES[coupling]()


def check_options(coupling: str | Dr2Net, given: Sequence[str]) -> None:
    """Beside another rule than momentum, nothing is given that only momentum has.

    Args:
        coupling: as `convert` takes it.
        given: names of the options of momentum that are not as they are by default.

    Raises:
        ConversionError: something is.
    """
    of_the_planner = [name for name in given if name in ("budget", "spare", "replan")]
    if of_the_planner:
        raise ConversionError(
            f"coupling={coupling!r} was given with {', '.join(of_the_planner)}, and the planner knows the bytes and "
            "times of momentum streams alone; leave out one of them"
        )
    if given:
        raise ConversionError(
            f"coupling={coupling!r} has no velocity, and {', '.join(given)} was given, which is for momentum; leave it "
            f"out, or take coupling={MOMENTUM!r}"
        )


def describe(rule: TwoStep) -> dict[str, str]:
    """A rule as plain data: its name, and its coefficients as fractions."""
    name = next(name for name, kind in _RULES.items() if type(rule) is kind)
    return {"name": name, **{field: str(value) for field, value in _coefficients(rule).items()}}


def from_description(description: Any) -> TwoStep:
    """The rule that `describe` told of.

    Raises:
        ConversionError: it is no such description.
    """
    try:
        found = dict(description)
        rule = _RULES[found.pop("name")](**{field: Fraction(value) for field, value in found.items()})
    except (TypeError, KeyError, ValueError, ZeroDivisionError) as error:
        raise ConversionError(
            f"a coupling is described by its name and its coefficients, got {description!r}"
        ) from error
    return rule


def in_words(description: Mapping[str, Any]) -> str:
    """What moves a stream, by its description."""
    if "coupling" not in description:
        return f"gamma {description['gamma']}"
    found = dict(description["coupling"])
    name = found.pop("name")
    return " ".join([name, *(f"{field} {value}" for field, value in found.items())])


def _coefficients(rule: TwoStep) -> dict[str, Fraction]:
    return {"alpha": rule.alpha, "beta": rule.beta} if isinstance(rule, Dr2Net) else {}


def _listed() -> str:
    return f"{', '.join(map(repr, NAMES))} or a momentumnet.Dr2Net"
