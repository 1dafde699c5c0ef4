"""The blocks of a stream that are still there, and those that run: a part alone lacks the velocity of the others."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from momentumnet.errors import ConversionError, MomentumNetWarning
from momentumnet.listing import quoted

# So many passes, all without the first or the last blocks, are no chance (a block that is left out now and then).
PARTIAL_PASSES = 3


class Members:
    """The blocks that have a place in a stream, as long as they are alive.

    A copy knows of none: those that are copied with it join it themselves.

    Args:
        name: the stream's name in messages.
        blocks: names of the blocks in call order.
    """

    def __init__(self, name: str, blocks: Sequence[str]) -> None:
        self._name, self._blocks = name, tuple(dict.fromkeys(blocks))
        self._alive: WeakValueDictionary[str, object] = WeakValueDictionary()
        self._is_used = False  # streams of functions have no blocks that could be cut away

    def __reduce__(self) -> tuple[Any, ...]:
        return Members, (self._name, self._blocks)

    def join(self, block: str, role: object) -> None:
        """The block of this name is there while ``role``, which it alone holds, is alive."""
        self._alive[block] = role
        self._is_used = True

    def check(self) -> None:
        """None is missing.

        Raises:
            ConversionError: one is.
        """
        if len(self._alive) == len(self._blocks) or not self._is_used:
            return
        missing = [block for block in self._blocks if block not in self._alive]
        raise ConversionError(
            f"stream {self._name!r} has lost {len(missing)} of its {len(self._blocks)} blocks: {quoted(missing)} "
            "(deleted, replaced, reverted alone, or left behind when a part was copied), and the velocity does not "
            "travel without them. Revert the model (momentumnet.revert), and convert it as it is now"
        )


class Stretch:
    """Warns of a stream whose first or last blocks never run, as in a stage of a pipeline; and of a loop cut short.

    Args:
        name: the stream's name in messages.
        blocks: names of the blocks in call order.
        flushes: whether something is added behind the last one.
    """

    def __init__(self, name: str, blocks: Sequence[str], *, flushes: bool) -> None:
        self._name, self._blocks, self._flushes = name, tuple(blocks), flushes
        self._is_loop = len(set(blocks)) < len(blocks)
        self._left: int | None = None  # the place where a pass of a loop was left, unless it has gone on since
        # Passes in a row that began behind the first block, or were left before the last; None once there was another.
        self._late_starts: int | None = 0
        self._early_ends: int | None = 0

    def begins(self, place: int) -> None:
        """A pass begins at ``place``."""
        if self._left is not None and self._flushes:
            self._warn_of_loop(self._left + 1)
            self._flushes = False
        if self._late_starts is None:
            return
        self._late_starts = self._late_starts + 1 if place else None
        if self._late_starts == PARTIAL_PASSES:
            self._late_starts = None
            self._warn(f"began at block {self._blocks[place]!r}", f"the {place} before it, and so without")

    def was_left(self, place: int) -> None:
        """Backward goes through a pass whose last block was the one at ``place``, which is not the stream's."""
        if self._is_loop:  # of another length, which without a flush is no other function
            self._left = place
            return
        if self._early_ends is None:
            return
        self._early_ends += 1
        if self._early_ends == PARTIAL_PASSES:
            self._early_ends = None
            behind = len(self._blocks) - 1 - place
            self._warn(f"ended with block {self._blocks[place]!r}", f"the {behind} behind it, and so without")

    def ends(self) -> None:
        """A pass has come to the stream's end."""
        self._early_ends = self._left = None

    def _warn_of_loop(self, steps: int) -> None:
        warnings.warn(
            f"stream {self._name!r} is a loop of {len(self._blocks)} steps, as the example inputs had it, and a pass "
            f"was left behind step {steps}, without what is added behind the last one. Longer loops begin anew there: "
            "a loop of another length trains another function: convert with an example of the longest one and "
            "final_velocity='drop', with which shorter ones lack nothing",
            MomentumNetWarning,
            stacklevel=2,
        )

    def _warn(self, event: str, lack: str) -> None:
        warnings.warn(
            f"stream {self._name!r} {event} in each of its first {PARTIAL_PASSES} passes, without {lack} the velocity "
            "that they give, or that is added at the stream's end. Stages of a pipeline are to end where streams end, "
            "or to be converted each for itself, after the cut",
            MomentumNetWarning,
            stacklevel=2,
        )
