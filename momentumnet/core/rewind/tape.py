"""The tape: one pass through a stream, from its steps in forward to the blocks that backward asks for."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.arithmetic.reports import has_values, is_hollow
from momentumnet.core.checks import audit
from momentumnet.core.rewind.play_again import cannot_be_made_over, play_again
from momentumnet.core.rewind.rewinding import Rewindable
from momentumnet.core.rewind.steps import StepMove
from momentumnet.core.state.coupling import Coupling, FloatState, NonFiniteBranch, State
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.late_check import LateCheck, LatePass, UnseenRests, largest_of, scale_of
from momentumnet.core.state.watch import Watch
from momentumnet.core.tensors import transforms
from momentumnet.errors import StateRangeError
from momentumnet.recompute.saved.saved_tensors import SavedTensors

logger = logging.getLogger("momentumnet")


class Tape(Rewindable):
    """The state of one pass, moved forward by steps and rewound by recomputing branches.

    Where a branch holds NaN or Inf, no integer can carry on: the exact state stays at that ``frontier``, ready to be
    rewound, and a float state goes on from there with stored activations, so that NaN reaches the loss as it does in
    any network. Where that was seen only when the forward had ended, the blocks behind the frontier have no stored
    activations: their ``inputs`` are kept instead.

    A tape that ``keeps_inputs`` is never rewound: the blocks' saved tensors own the inputs, and the state is forgotten
    when the stream has ended.

    Where blocks call other processes (``in_company``), they are recomputed behind the frontier, too, as those of the
    others are: from inputs that their saved tensors own.

    A tape that is looked at ``late`` has reports that nobody reads in forward; nor can they be where a CUDA graph is
    recorded. It goes to rest as the pass before has told (``unseen``).
    """

    def __init__(
        self,
        name: str,
        coupling: Coupling,
        state: State,
        *,
        reversible: bool,
        graded: bool,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(name, state)
        self.coupling, self.reversible, self.graded = coupling, reversible, graded
        self.keeps_inputs = self.in_company = False
        self.late: LatePass | None = None
        self.unseen = UnseenRests(None)
        self.check: LateCheck | None = None
        self.watch = watch
        self.inputs: dict[int, Tensor] = {}
        self.beyond: FloatState | None = None
        self.filled: weakref.ref[SavedTensors] | None = None
        self._nothing: Tensor | None = None

    @property
    def recording(self) -> bool:
        """Whether the next block's saved tensors may be dropped."""
        return self.reversible and (self.beyond is None or self.in_company)

    @property
    def can_be_made_over(self) -> bool:
        """Whether a forward that went wrong will be played again, so that blocks need not be looked at one by one."""
        return self.watch is not None and self.watch.start is not None

    @property
    def rewindable(self) -> bool:
        """Whether a gradient may still ask for an earlier position."""
        return self.reversible and self.floor < self.length

    def advance(self, branch: Branch, dtype: torch.dtype, move: StepMove) -> Tensor:
        """Apply a new step at the end and return the next x."""
        with self.lock:
            self.play_to_end()
            self.length += 1
            self.steps.append(move.step)
            if self.beyond is None:
                try:
                    undo = self.state.step(branch, move.weight, move.coarsest)
                except NonFiniteBranch:
                    self.go_beyond(self.float_state(branch))
                else:
                    self.position += 1
                    if self.watch is not None:
                        self.watch.note(self.state, move.place, move.coarsest, move.step)
                    if move.step is not None and not self.keeps_inputs:
                        move.step.made(undo, self.state.exponent)
                    return self.state.position(dtype)
            beyond = self.last_state()
            beyond.step(branch, move.weight)
            return beyond.position(dtype)

    def nothing(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A zero that nobody writes to, made once."""
        if self._nothing is None or (self._nothing.dtype, self._nothing.device) != (dtype, device):
            self._nothing = torch.zeros((), dtype=dtype, device=device)
        return self._nothing

    def go_beyond(self, state: FloatState) -> None:
        """From here on in floats."""
        self.beyond, self.frontier = state, self.position

    def handed_on(self) -> Tape:
        """A tape for blocks that keep their activations: goes on from the end of this one, which waits for backward.

        Such blocks cannot be made over, so their steps are looked at one by one, where that is possible.
        """
        if not self.reversible:  # handed on already
            return self
        with self.lock, torch.no_grad():
            self.play_to_end()
            extremes = self.settle(standing=True)
            if self.recording and self.rewindable:
                if self._unread is not None and self._waits:
                    extremes = self.unseen.extremes_for(self.state)
                state = self.state if self.keeps_inputs else self.state.fork(extremes)
                state.careful = isinstance(state, ExactState) and self._looks_at_each(state)
                watch = None if self.watch is None else self.watch.continued(state)
                self.end_watch()
                self.end()
                onward = Tape(self.name, self.coupling, state, reversible=False, graded=self.graded, watch=watch)
                onward.late, onward.unseen = self.late, self.unseen
                if onward.late is not None:
                    onward.late.goes_on(onward.check_on_the_way)
                return onward
            self.reversible &= self.rewindable
            if self.watch is not None and not self.reversible:
                self.watch.start = None
                self.state.careful = self._looks_at_each(self.state)
            return self

    def _looks_at_each(self, state: State) -> bool:
        """Whether the steps of blocks that cannot be made over are looked at one by one, as far as they can be."""
        return self.late is None and has_values(state.report)

    @property
    def _unread(self) -> Watch | None:
        """The watch of a forward in which nothing is read: nobody wants it, or nobody can."""
        if self.watch is None:
            return None
        report = self.watch.first.report
        is_read = self.late is None and (has_values(report) or is_hollow(report))
        return None if is_read else self.watch

    def check_on_the_way(self) -> LateCheck | None:
        """Of a pass in which nothing is read, and that has not ended: a gradient is taken."""
        return None if (unread := self._unread) is None else LateCheck(self.name, unread, self.state)

    def settle(self, *, ending: bool = False, standing: bool = False) -> Sequence[float] | None:
        """Look at what the steps have reported: in one read, with the state's extremes where it goes to rest.

        A pass that went wrong is played again with care, if that is in time: at the stream's end, or where its block
        is ``standing`` ready to take what comes. Returns the extremes, where they are known now.

        Raises:
            StateRangeError: it went wrong, and others have gone on from its values already.
        """
        watch = self.watch
        if watch is None or not (watch.unread or ending) or self._unread is not None:
            return None
        at_rest = ending or standing
        extremes = watch.read(self.state.extremes() if at_rest and self._waits else None)
        if self.beyond is None and self._is_unfit(watch):
            seen = watch.seen
            try:
                if not at_rest:
                    raise cannot_be_made_over(self.name)
                play_again(self, watch)
            except StateRangeError:
                watch.learn(seen, scale_of(self.state), None)  # so that the next pass is careful
                raise
            extremes = watch.read(self.state.extremes() if at_rest and self._waits else None)
        if extremes:
            watch.largest = largest_of(extremes, self.state.exponent)
        if ending and not self._is_unfit(watch):  # as a start of NaN or Inf is, which teaches nothing
            watch.learn(watch.seen, scale_of(self.state), watch.largest)
        return extremes or None

    @property
    def _waits(self) -> bool:
        """Whether the state will be rewound."""
        return self.rewindable and not self.keeps_inputs

    def _is_unfit(self, watch: Watch) -> bool:
        """Whether a value that has been read did not fit."""
        return any(self.state.unfit(entry.magnitude) for entry in watch.seen)

    def float_state(self, branch: Branch, block: int | None = None) -> FloatState:
        """The state to go on with from a branch that no integer can carry."""
        logger.warning(
            "stream %r: the branch of block %d holds NaN or Inf; this pass goes on in floats, with stored activations",
            self.name,
            self.length - 1 if block is None else block,
        )
        dtype = torch.promote_types(branch.y.dtype, torch.float32)
        return self.coupling.floats(self.state.position(dtype), self.state.velocity(dtype))

    def last_state(self) -> State:
        """The state at the end of what has been played."""
        return self.state if self.beyond is None else self.beyond

    def output(self, dtype: torch.dtype, factor: float) -> Tensor:
        """What the stream returns, x + factor v at its end; the same again as long as the tape lives."""
        with self.lock, torch.no_grad():
            self.play_to_end()
            return self.last_state().output(dtype, factor)

    def velocity(self, dtype: torch.dtype) -> Tensor:
        """v at the stream's end, as `output` has x."""
        with self.lock, torch.no_grad():
            self.play_to_end()
            return self.last_state().velocity(dtype)

    def rest(self) -> None:
        """The stream has ended: everything has been seen, and it waits for backward in little memory."""
        with self.lock, torch.no_grad():
            self.play_to_end()
            extremes: Sequence[float] | None
            if (unread := self._unread) is not None:
                extremes = self.unseen.extremes_for(self.state) if self._waits else None
                self.check = LateCheck(self.name, unread, self.state, self.unseen.made)
                if self.late is not None:
                    self.late.check = self.check
            else:
                extremes = self.settle(ending=True)
            self.end_watch()
            if self._waits:
                self.state.pack(extremes)

    def end(self) -> None:
        """What the stream returns has been taken: a state that nobody rewinds is freed."""
        if self.keeps_inputs and self.rewindable:
            self.state = self.coupling.floats(torch.empty(0), None)

    def end_watch(self) -> None:
        """The forward stands as it went."""
        if self.watch is not None:
            self.watch.end()
            self.watch = None

    @property
    def repeatable(self) -> bool:
        """Whether `output` returns the same bits again, and the graph keeps what that needs anyway."""
        return self._waits and isinstance(self.state, ExactState)

    def forget(self) -> None:
        """No gradient reaches the steps so far: free what would rewind them."""
        self.steps = [None] * self.length
        self.floor = self.length

    def refill(self, index: int, saved: SavedTensors) -> None:
        """Recompute block ``index`` for its saved tensors, and rewind its step with the branch found on the way."""
        with self.lock, transforms.outside(), torch.no_grad(), audit.errors_explained():
            self._check_whole()
            self.settle()
            if self.late is not None:
                self.late.in_backward()
            elif (check := self.check or self.check_on_the_way()) is not None:
                check.in_backward()
            previous = self.filled() if self.filled is not None else None
            if previous is not None:
                previous.empty()
            step = self._step(index)
            x = self.inputs[index] if index in self.inputs else saved.input()
            x = self.input_of(index) if x is None else x
            output, fill = step.again_for(saved, x)
            # At the frontier the state never moved past this block: there is nothing to rewind.
            if self.position == index + 1 and not self.keeps_inputs:
                self._undo_with(step.branch_of(output, x))
            fill()
            self.filled = weakref.ref(saved)
