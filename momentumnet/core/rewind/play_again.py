"""A forward that went wrong, made over from its start: a value in it did not fit its scale, or was NaN."""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from momentumnet.arithmetic.layout import lying_as
from momentumnet.core.state.coupling import NonFiniteBranch
from momentumnet.core.state.watch import Passed, Watch
from momentumnet.errors import StateRangeError
from momentumnet.recompute.replay import BlockCall
from momentumnet.recompute.saved.collected_tensors import without_saved_tensors
from momentumnet.recompute.surroundings.stand_in import StandIn

if TYPE_CHECKING:
    from momentumnet.core.rewind.tape import Tape  # which plays again when it finds that it has to

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
    for step in reversed(steps):
        step.call.take_back()
    passed, watch.passed = watch.passed, []
    tape.position, tape.beyond, tape.frontier = 0, None, math.inf
    try:
        tape.state = watch.begin(watch.start)
    except NonFiniteBranch:
        logger.warning("stream %r starts from NaN or Inf; this pass runs in floats, activations stored", tape.name)
        tape.go_beyond(tape.coupling.floats(watch.start, watch.velocity))
        watch.learn = _nothing  # such a start teaches nothing
    watch.restart(tape.state)
    for index, entry in enumerate(passed):
        made = _make_over(tape, watch, index, entry)
        _give_right_values(tape, watch, entry, made, [step.call for step in steps[index + 1 :]])
    logger.warning(
        "stream %r: values outgrew their scale in one pass, so its forward was played again, exactly. Nothing to do, "
        "unless the network computes something between the stream's blocks (an auxiliary loss): that has seen wrong "
        "values in this one pass",
        tape.name,
    )


def cannot_be_made_over(stream: str) -> StateRangeError:
    """The error for a pass that went wrong when others have gone on from its values."""
    return StateRangeError(
        f"stream {stream!r}: values outgrew their scale by more than its headroom in a pass that cannot be made over "
        "any more: it was left before its last block, a gradient was taken on the way, a block holds an "
        "autograd.Function or saved-tensor hooks, reads values into Python or contains a stream itself, or it has "
        "changed an argument object that refuses to be copied, or filled a set with tensors. The next pass finds a "
        "wider scale: run this step again from its forward."
    )


def _make_over(tape: Tape, watch: Watch, index: int, entry: Passed) -> tuple[Any, torch.dtype]:
    """One step of `play_again`: what its block returns, and the type of its stream."""
    step, state = entry.step, tape.last_state()
    if not step.call.can_be_made_over:
        raise cannot_be_made_over(tape.name)
    # The graph goes by the order of the first run; floats lie as the block in front has returned them.
    x = lying_as(state.position(step.call.dtype), step.strides)
    if tape.beyond is None:
        step.fingerprint = tape.state.fingerprint()
    if tape.beyond is not None or tape.keeps_inputs:
        tape.inputs[index] = x
    step.values.begin(functools.partial(step.call.origins, x))
    with without_saved_tensors(step.call.name, step.values), _Watcher() as watcher:
        output = step.call.anew(x)
    step.first_run_ends(output)
    branch = step.branch_of(output, x)
    if step.call.holds_streams or watcher.found or _has_python_functions(output):
        # Its graph may hold numbers of the run that went wrong, beside the saved tensors, which are filled in anew.
        raise cannot_be_made_over(tape.name)
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
    return output, branch.y.dtype


def _give_right_values(
    tape: Tape, watch: Watch, entry: Passed, made: tuple[Any, torch.dtype], later: list[BlockCall]
) -> None:
    """What the wrong run has left with the parent, with argument objects and with later calls is as it should be."""
    output, dtype = made
    try:
        watch.give_right_values(entry, tape.last_state().position(dtype), output)
        entry.step.call.put_right(later)
    except (RuntimeError, ValueError) as error:  # of another size or number, or without memory of their own
        raise cannot_be_made_over(tape.name) from error


class _Watchers(threading.local):
    """Those of this thread."""

    found: tuple[_Watcher, ...] = ()


_WATCHERS = _Watchers()


def _noticed(hooks: saved_tensors_hooks) -> None:
    """Saved-tensor hooks are entered: PyTorch tells nobody of them."""
    for watcher in _WATCHERS.found:
        watcher.found = True
    _ENTER.original(hooks)


_ENTER = StandIn(saved_tensors_hooks, "__enter__", _noticed)


@contextmanager
def _hooks_seen_by(watcher: _Watcher) -> Iterator[None]:
    outside = _WATCHERS.found
    try:
        _WATCHERS.found = (*outside, watcher)
        with _ENTER.standing():
            yield
    finally:
        _WATCHERS.found = outside


class _Watcher(TorchDispatchMode):
    """Notices what a graph may keep beside the tensors that are filled in anew.

    Values that are read into Python, and tensors that go to saved-tensor hooks of the block's own (`save_on_cpu`,
    `torch.utils.checkpoint` without re-entry).
    """

    found = False

    def __enter__(self) -> _Watcher:
        self._hooks = _hooks_seen_by(self)
        self._hooks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _has_python_functions(output: Any) -> bool:
    """Whether the graph of a block's output holds functions written in Python, which keep what they like."""
    pending = [leaf.grad_fn for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if BackwardCFunction in type(node).__mro__ and getattr(node, "keeps_values", True):
            return True
        seen.add(node)
        pending += [following for following, _ in node.next_functions]
    return False


def _nothing(seen: object, scale: object, largest: object) -> None:
    """Nothing is learnt."""
