"""Where streams ended: what a stream returned lies in its state, so that nobody behind it has to keep it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from momentumnet.core.arguments import version
from momentumnet.core.tape import Tape


@dataclass(frozen=True)
class _End:
    output: weakref.ref[Tensor]
    counter: int  # the output's in-place counter when it was returned
    tape: weakref.ref[Tape]  # weak: the output may outlive its graph, the tape should not
    factor: float


class Ends:
    """The ends of streams by the identity of the tensors that they returned; each is forgotten with its tensor."""

    def __init__(self) -> None:
        self._ends: dict[int, _End] = {}

    def put(self, output: Tensor, tape: Tape, factor: float) -> None:
        """Remember that ``output`` is x + factor v at the end of the tape."""
        if tape.repeatable:
            key, ends = id(output), self._ends
            reference = weakref.ref(output, lambda _: ends.pop(key, None))
            ends[key] = _End(reference, version(output), weakref.ref(tape), factor)

    def source_among(self, tensors: Iterable[Tensor]) -> tuple[Tensor, Callable[[], Tensor]] | None:
        """The first of the tensors that is as a stream returned it, and what computes it again."""
        for tensor in tensors:
            end = self._ends.get(id(tensor))
            tape = None if end is None else end.tape()
            if end is not None and tape is not None and end.output() is tensor and end.counter == version(tensor):
                return tensor, functools.partial(tape.output, tensor.dtype, end.factor)
        return None


# One for all streams: who is given a tensor does not know where it comes from.
ENDS = Ends()
