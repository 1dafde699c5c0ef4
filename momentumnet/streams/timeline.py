"""What can be recomputed, block by block and part by part, in the order in which it runs, and what that saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from momentumnet.streams.calls import Call, Trace
from momentumnet.streams.outside import Part


@dataclass(frozen=True)
class Stage:
    """Calls whose activations live and die together: a stream's block, or a part outside the streams.

    Attributes:
        names: Their modules.
        stream: For a block, the index of its stream.
        saving: Bytes that are not kept where it is recomputed: all that a block keeps, as the stream's state gives its
            input again; of a part, all but its input.
        returned: Bytes of a part's input that is the output of a stream, which an exact one can give again.
        repeated: Whether a block's stream runs several times in a pass.
    """

    names: tuple[str, ...]
    stream: int | None
    saving: int
    returned: int = 0
    repeated: bool = False

    def freed(self, *, given_again: bool) -> int:
        """Bytes that its recompute frees, its input among them where streams give their outputs again."""
        return self.saving + (self.returned if given_again else 0)


def timeline_of(
    trace: Trace, runs: Sequence[Sequence[Call]], streams: Sequence[int], parts: Sequence[Part]
) -> tuple[Stage, ...]:
    """The stages in call order.

    Args:
        trace: The pass.
        runs: The blocks of the streams.
        streams: For each run, the index of its stream.
        parts: What lies outside and can be recomputed.
    """
    placed = [
        (call.index, Stage((call.name,), stream, trace.saved_bytes([call]), repeated=streams.count(stream) > 1))
        for run, stream in zip(runs, streams, strict=True)
        for call in run
    ]
    placed += [(part.calls[0].index, Stage(part.names, None, part.saving, part.returned)) for part in parts]
    return tuple(stage for _, stage in sorted(placed, key=lambda item: item[0]))


def tail_of(timeline: Sequence[Stage], spare: int, *, waiting: Sequence[int], freed: Sequence[int]) -> int:
    """Number of the first of the last stages that keep their activations, in ``spare`` bytes.

    Those that backward comes to first: what they keep is gone when it comes to the others, so that a step's peak grows
    by ``spare`` at most.

    Args:
        timeline: The stages that are recomputed.
        spare: Bytes that may be held more than if all were recomputed.
        waiting: Bytes of each stream's state at rest. It waits beside the one that goes on, if the tail begins amid it.
        freed: Bytes that the recompute of each stage frees.
    """
    tail, begun = len(timeline), Counter(stage.stream for stage in timeline)
    if not spare:
        return tail
    for index, stage in reversed(list(enumerate(timeline))):
        spare -= freed[index]
        if spare < 0 or stage.repeated:
            break
        begun[stage.stream] -= 1
        amid = stage.stream is not None and begun[stage.stream] > 0
        if stage.stream is None or not amid or spare >= waiting[stage.stream]:
            tail = index
    return tail
