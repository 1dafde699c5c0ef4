"""Which blocks a stream cannot carry, as their modules are called in other places too: each call goes through it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from momentumnet.streams.tracing.calls import Call, Trace

Runs = Sequence[Sequence[Call]]


def called_elsewhere(trace: Trace, runs: Runs) -> set[str]:
    """Names of blocks that are called outside of their run or in another order.

    A call without gradients asks for none of the stream, and may stand anywhere but half a pass in front of a run.
    """
    orders: dict[nn.Module | None, set[tuple[str, ...]]] = {}
    for run in runs:
        for call in run:
            orders.setdefault(call.module, set()).add(_names(run))
    inside = {call for run in runs for call in run}
    calls = [call for call in trace.root.walk() if call.module in orders]
    elsewhere = {call.name for call in calls if call not in inside and call.recorded_gradients}
    elsewhere |= {call.name for call in inside if len(orders[call.module]) > 1}
    return elsewhere.union(*(_names(run) for run in runs if _begins_in_the_middle(run, calls)))


def _begins_in_the_middle(run: Sequence[Call], calls: Sequence[Call]) -> bool:
    """Whether calls of its modules without gradients lead to the run, as in a loop of which only the end is trained.

    The stream is at its start again behind whole passes alone.
    """
    before: list[Call] = []
    for call in calls:
        if call is run[0]:
            break
        before = [] if call.recorded_gradients else [*before, call]
    end = before[-1].output if before else None
    if end is None or all(entry.key != end.key for entry in run[0].inputs):
        return False
    return _names(before) != _names(run) * (len(before) // len(run))


def _names(calls: Sequence[Call]) -> tuple[str, ...]:
    return tuple(call.name for call in calls)
