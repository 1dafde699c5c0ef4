"""Where streams ended: what a stream returned lies in its state, so that nobody behind it has to keep it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from momentumnet.core.rewind.tape import Tape
from momentumnet.core.tensors.by_tensor import ByTensor
from momentumnet.recompute.values.counters import version


@dataclass(frozen=True)
class _End:
    counter: int  # the output's in-place counter when it was returned
    tape: weakref.ref[Tape]  # weak: the output may outlive its graph, the tape should not
    factor: float


# One for all streams: who is given a tensor does not know where it comes from.
_ENDS: ByTensor[_End] = ByTensor()


def remember(output: Tensor, tape: Tape, factor: float) -> None:
    """``output``, which a stream returns, is x + factor v at the end of the tape."""
    if tape.repeatable:
        _ENDS.put(output, _End(version(output), weakref.ref(tape), factor))


def source_among(tensors: Iterable[Tensor]) -> tuple[Tensor, Callable[[], Tensor]] | None:
    """The first of the tensors that is as a stream returned it, and what computes it again."""
    for tensor in tensors:
        end = _ENDS.get(tensor)
        tape = None if end is None else end.tape()
        if end is not None and tape is not None and end.counter == version(tensor):
            return tensor, functools.partial(tape.output, tensor.dtype, end.factor)
    return None
