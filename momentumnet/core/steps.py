"""The steps of a tape: what is done once, and what is kept so that it can be made again and undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from torch import Tensor

from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.audit import Fingerprint
from momentumnet.core.coupling import Undo
from momentumnet.recompute.replay import BlockCall

if TYPE_CHECKING:
    from momentumnet.core.tape import Tape


@dataclass
class TapeStep:
    """One step as it was made: enough to make it again, and to undo it."""

    call: BlockCall
    weight: Fraction
    branch_of: Callable[[object, Tensor], Branch]
    fingerprint: Fingerprint  # of the state before the step
    undo: Undo | None = None  # None while the step is not applied
    exponent: int | None = None  # the scale behind the step: what it takes when it is made again

    def made(self, undo: Undo, exponent: int) -> None:
        """The step has been applied."""
        self.undo, self.exponent = undo, exponent


@dataclass(frozen=True)
class StepMove:
    """What one step does to the tape.

    Attributes:
        tape: the tape.
        step: how it is made again; None where nothing is to be rewound.
        weight: of the branch.
        branch_is_output: whether the block returned the branch itself.
        place: of the block in the stream.
        coarsest: the scale that earlier passes had to take there, if any.
    """

    tape: Tape
    step: TapeStep | None
    weight: Fraction
    branch_is_output: bool
    place: int
    coarsest: int | None
