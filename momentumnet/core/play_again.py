"""A forward that went wrong, made over from its start: a value in it did not fit its scale, or was NaN."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from momentumnet.core.coupling import FloatState, NonFiniteBranch
from momentumnet.core.watch import Passed, Watch
from momentumnet.errors import StateRangeError
from momentumnet.recompute.saved_tensors import without_saved_tensors

if TYPE_CHECKING:
    from momentumnet.core.tape import Tape  # which plays again when it finds that it has to

logger = logging.getLogger("momentumnet")


def play_again(tape: Tape, watch: Watch) -> None:
    """Make the steps of a forward over, with care, from the stream's start: a value in it did not fit its scale.

    Whatever the blocks changed is taken back first, and the parent's tensors receive what they should have held.

    Raises:
        StateRangeError: the start is not as it was, or activations are stored already; or no scale can carry a value.
    """
    steps = [passed.step for passed in watch.passed]
    if not watch.can_play_again or watch.begin is None or watch.start is None or None in steps:
        raise cannot_be_made_over(tape.name)
    logger.warning(
        "stream %r: values outgrew their scale in one pass, so its forward was played again, exactly. Nothing to do, "
        "unless the network computes something between the stream's blocks (an auxiliary loss): that has seen wrong "
        "values in this one pass",
        tape.name,
    )
    for step in reversed(steps):
        step.call.take_back()
    passed, watch.passed = watch.passed, []
    tape.position, tape.beyond, tape.frontier = 0, None, math.inf
    try:
        tape.state = watch.begin(watch.start)
    except NonFiniteBranch:
        logger.warning("stream %r starts from NaN or Inf; this pass runs in floats, activations stored", tape.name)
        tape.go_beyond(FloatState(watch.start, None, tape.gamma))
    watch.restart(tape.state)
    for index, entry in enumerate(passed):
        _make_over(tape, watch, index, entry)


def cannot_be_made_over(stream: str) -> StateRangeError:
    """The error for a pass that went wrong when others have gone on from its values."""
    return StateRangeError(
        f"stream {stream!r}: values outgrew their scale by more than its headroom in a pass that cannot be made over "
        "any more (it was left before its last block, or a gradient was taken on the way). Nothing of it was used. "
        "The next pass finds a wider scale: run this step again from its forward."
    )


def _make_over(tape: Tape, watch: Watch, index: int, entry: Passed) -> None:
    """One step of `play_again`."""
    step, state = entry.step, tape.last_state()
    x = state.position(step.call.dtype)
    if tape.beyond is None:
        step.fingerprint = tape.state.fingerprint()
    else:
        tape.inputs[index] = x
    with without_saved_tensors():
        output = step.call.anew(x)
    branch = step.branch_of(output, x)
    try:
        undo = state.step(branch, step.weight, entry.coarsest)
    except NonFiniteBranch:
        tape.go_beyond(tape.float_state(branch, index))
        state = tape.last_state()
        state.step(branch, step.weight)
    else:
        if tape.beyond is None:
            step.made(undo, state.exponent)
            tape.position += 1
            watch.note(state, entry.place, entry.coarsest, step)
    watch.give_right_values(entry, state.position(branch.y.dtype), output)
