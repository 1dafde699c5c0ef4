"""How a unit's activations come to its backward: the ways there are, and a choice for each unit."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple


class Way(Enum):
    """How the activations of units come to their backward."""

    STORED = "stored"  # kept
    CHECKPOINTED = "checkpointed"  # recomputed from an input that is kept
    REVERSIBLE = "reversible"  # recomputed from an input that the stream's state gives again
    OFFLOADED = "offloaded"  # kept in host memory

    __hash__ = object.__hash__  # that of enumerations is written in Python, and a search asks for it again and again


# The ways in which a unit's forward does not run a second time.
KEPT = (Way.STORED, Way.OFFLOADED)


class Front(Enum):
    """What stands in front of a unit."""

    NOTHING = 0  # nobody keeps its input
    STORED = 1  # a unit that is stored
    GIVEN = 2  # a stream whose state gives its input again
    OFFLOADED = 3  # a unit whose tensors leave while this one runs, and come back while its backward does

    __hash__ = object.__hash__  # as of `Way`


class Choice(NamedTuple):
    """Units in a row, ``start`` to ``stop`` (exclusive), and how theirs come.

    Those that are checkpointed are recomputed together, from the input of the first, or if they are blocks of a
    momentum stream each from its own.
    """

    start: int
    stop: int
    way: Way


def choice_of_each(choices: Sequence[Choice]) -> list[Choice]:
    """For each unit, the choice that it belongs to."""
    return [choice for choice in choices for _ in range(choice.start, choice.stop)]
