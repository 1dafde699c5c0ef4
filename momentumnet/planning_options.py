"""Options of a conversion and of a plan: the values that they take, and those that go together."""

from __future__ import annotations

from momentumnet.core.settings import BACKWARDS
from momentumnet.planner.budget import ANEW, GRADIENTS
from momentumnet.streams.plan import AUTO

OTHERS = ("keep", "checkpoint")


def check_options(others: str, spare: int, backward: str) -> None:
    """These options have values that they take, and go together."""
    if backward not in (AUTO, *BACKWARDS):
        raise ValueError(f"backward must be one of {', '.join(map(repr, (AUTO, *BACKWARDS)))}, got {backward!r}")
    if others not in OTHERS:
        raise ValueError(f"others must be one of {', '.join(map(repr, OTHERS))}, got {others!r}")
    if isinstance(spare, bool) or not isinstance(spare, int) or spare < 0:
        raise ValueError(f"spare must be a number of bytes, 0 or more, got {spare!r}")


def check_offload(offload: bool, *, is_planned: bool) -> None:
    """Offloading is one of the choices of a plan."""
    if not isinstance(offload, bool):
        raise ValueError(f"offload must be True or False, got {offload!r}")
    if offload and not is_planned:
        raise ValueError(
            "offload=True lets a plan move activations to host memory, and nothing is planned; give a budget, too, "
            "e.g. budget='4GiB'"
        )


def check_gradients(gradients: str, *, is_planned: bool) -> None:
    """Gradients are there before, or not, and count in a plan."""
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients must be one of {', '.join(map(repr, GRADIENTS))}, got {gradients!r}")
    if gradients != ANEW and not is_planned:
        raise ValueError(
            f"gradients={gradients!r} says what a plan counts, and nothing is planned; give a budget, too, e.g. "
            "budget='4GiB'"
        )
