"""What can be recomputed, block by block and part by part, in the order in which it runs, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from momentumnet.streams.finding.outside import Part
from momentumnet.streams.finding.untrained import keeps_nothing
from momentumnet.streams.tracing.calls import Call, Trace


@dataclass(frozen=True)
class Stage:
    """Calls whose activations live and die together: a stream's block, or a part outside the streams.

    Attributes:
        names: Their modules.
        stream: For a block, the index of its stream.
        saving: Bytes that are not kept where it is recomputed: all that a block keeps, as the stream's state gives its
            input again; of a part, all but its input.
        returned: Bytes of a part's input that is the output of a stream, which an exact one can give again.
        run: For a block, the number of the run that it is called in: a stream may run several times in a pass.
    """

    names: tuple[str, ...]
    stream: int | None
    saving: int
    returned: int = 0
    run: int | None = None

    def freed(self, *, given_again: bool) -> int:
        """Bytes that its recompute frees, its input among them where streams give their outputs again."""
        return self.saving + (self.returned if given_again else 0)


def timeline_of(
    trace: Trace,
    runs: Sequence[Sequence[Call]],
    streams: Sequence[int],
    parts: Sequence[Part],
    idle: Set[Call] = frozenset(),
) -> tuple[Stage, ...]:
    """The stages in call order.

    Args:
        trace: The pass.
        runs: The blocks of the streams.
        streams: For each run, the index of its stream.
        parts: What lies outside and can be recomputed.
        idle: Calls of which a training step keeps nothing, as nothing in front of them is trained.
    """
    placed = [
        (call.index, Stage((call.name,), stream, trace.saved_bytes([call]), run=number))
        for number, (run, stream) in enumerate(zip(runs, streams, strict=True))
        for call in run
    ]
    for part in parts:
        nothing = all(keeps_nothing(call, idle) for call in part.calls)
        saving, returned = (0, 0) if nothing else (part.saving, part.returned)
        placed.append((part.calls[0].index, Stage(part.names, None, saving, returned)))
    return tuple(stage for _, stage in sorted(placed, key=lambda item: item[0]))
