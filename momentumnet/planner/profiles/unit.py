"""A unit of a training step, which is kept in one way: what it keeps, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

# A storage that autograd keeps, by number.
Key = int


@dataclass(frozen=True)
class Cost:
    """What one run of a unit takes; bytes count from what was there before it.

    Attributes:
        forward_seconds: time of its forward.
        backward_seconds: time of its backward.
        free_peak: largest number of bytes in a forward that keeps nothing behind its end, its output included.
        forward_peak: the same in one that keeps what backward needs.
        backward_peak: the same in backward, above what was kept; gradients of its output, input and parameters
            included.
        output_bytes: of what it returns, and so of the gradient that comes to it.
        parameter_bytes: of the gradients that it leaves; none where they are there before, and are added to.
        cast_bytes: of weights in autocast's type, which autocast keeps to the end of the forward.
        added_bytes: at most, of gradients of parameters that are added to those that are there before, and go.
        has_backward: whether the loss hands it a gradient; else it is never recomputed.
        again_peak: as ``backward_peak``, where other gradients of its shared parameters wait and are added to its own;
            without those that wait.
        stream_peak: of a stream's block as ``backward_peak``, with a gradient of its input that has come before.
    """

    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    free_peak: int = 0
    forward_peak: int = 0
    backward_peak: int = 0
    output_bytes: int = 0
    parameter_bytes: int = 0
    cast_bytes: int = 0
    added_bytes: int = 0
    has_backward: bool = True
    again_peak: int = 0
    stream_peak: int = 0

    def leaving(self, count: int, *, has_backward: bool) -> Cost:
        """The cost where by so many bytes more gradients of parameters are left; others are added, and go."""
        if not has_backward:
            alone = replace(self, parameter_bytes=0, added_bytes=0, has_backward=False)
            return replace(alone, backward_seconds=0.0, backward_peak=0, again_peak=0, stream_peak=0)
        added = max(self.added_bytes, self.parameter_bytes - max(0, count))
        return replace(self, parameter_bytes=count, added_bytes=added)


class Handover(Enum):
    """What of a unit's arguments the unit before it has returned: with ALL, both can be recomputed from one input."""

    NOTHING = "nothing"
    PART = "part"
    ALL = "all"


@dataclass(frozen=True)
class Unit:
    """Calls whose activations live and die together: a stream's block, or a part outside the streams.

    Attributes:
        names: their modules.
        stream: for a block, the index of its stream; one that runs several times counts as one each time.
        saved: the storages that its backward needs.
        entry: the storages of its arguments.
        handover: how much of its arguments is what the unit before returned.
        cost: what it takes.
        filled: the storages that it leaves in key-value caches which the model returns, so that they stay to the end of
            the step; nothing where it is recomputed.
        beside: of the arguments those that nobody saves, no unit before was given and its stream does not carry.
    """

    names: tuple[str, ...]
    stream: int | None
    saved: frozenset[Key]
    entry: frozenset[Key]
    handover: Handover
    cost: Cost
    filled: frozenset[Key] = frozenset()
    beside: frozenset[Key] = frozenset()
