"""A momentum stream: the settings that its blocks share, and how a block's call finds its velocity.

The blocks are called by code that knows nothing of velocities: a Sequential, a loop, anything. So the velocity travels
with the identity of the stream tensor: a block that receives the very tensor that an earlier block of the stream
returned goes on from there; the first block starts a new pass.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.core import ends, reversible
from momentumnet.core.coupling import FloatState, NonFiniteBranch, State, flush_factor
from momentumnet.core.exact_state import ExactState
from momentumnet.core.passage import Passage, Passages, Unfinished, rivals_of
from momentumnet.core.scale import ScalePlan, StreamScale
from momentumnet.core.settings import StreamSettings
from momentumnet.core.tape import Tape
from momentumnet.core.watch import Seen, Watch
from momentumnet.errors import ConversionError, ReconstructionError
from momentumnet.recompute.arguments import replace_stream, version
from momentumnet.recompute.caches import Lent
from momentumnet.recompute.choices import chosen, recomputing

logger = logging.getLogger("momentumnet")


class MomentumStream(StreamSettings):
    """One stream: what its blocks have in common, what it has learned of its values, and the call of one of its blocks.

    Args:
        name: the stream's name in messages.
        blocks: names of the blocks in call order; a block called several times stands several times.
        gamma: in [0, 1]; rounded to n/d with d <= 128.
        magnitude: largest value to expect; None to take it from the first pass.
        start: largest value to expect at the stream's start; None to take it from the first pass.
        spread: how far typical values lie below the largest; None to take it from the first pass.
        options: those of `StreamSettings`.
    """

    def __init__(
        self,
        name: str,
        blocks: tuple[str, ...],
        gamma: float | Fraction,
        *,
        magnitude: float | None = None,
        start: float | None = None,
        spread: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, blocks, gamma, **options)
        self._scale = StreamScale(name, magnitude, len(blocks), start, spread)
        self._passages = Passages(name, blocks)

    @contextmanager
    def scale_kept(self) -> Iterator[None]:
        """At the end, the stream knows of its magnitude what it knew before: the passes inside teach it nothing."""
        kept, self._scale = self._scale, copy.copy(self._scale)
        try:
            yield
        finally:
            self._scale = kept

    def call(
        self,
        block: str,
        module: nn.Module,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call ``function(*args, **kwargs)`` as the next block of the stream; return what the parent gets.

        Raises:
            ConversionError: no stream tensor among the arguments, or one whose velocity has been lost.
            ReconstructionError: the block overwrites its input.
        """
        if self.gamma == 0 and not self.branch_is_output:
            return function(*args, **kwargs)
        lent = Lent(block, module, args, kwargs) if self.backward == "reversible" else None
        if lent is not None:
            args, kwargs = lent.args, lent.kwargs
        key, x = self._passages.stream_argument(block, args, kwargs)
        passage = self._passages.take(x)
        place = self._passages.place_of(block, passage)
        from_the_middle = passage is None and place > 0 and _in_backward()
        if passage is None:
            passage = self._start(x, place)
            passage.rivals = rivals_of(x, args, kwargs)
        else:
            self._passages.check_handover(block, key, x, passage)
        self._resume_gradients(x, passage)
        tape, velocity, plan, entered = passage.tape, passage.velocity, passage.plan, x
        if tape.length == 0 and isinstance(tape.state, ExactState):
            entered = reversible.enter(x, tape)
            args, kwargs = replace_stream(args, kwargs, x, entered)
        if place >= len(self.blocks) - self.kept:
            passage.tape = tape = tape.handed_on()
        coarsest = None if plan is None else plan.coarsest.get(place)
        run = reversible.BlockRun(block, module, function, self.branch_is_output, place, coarsest)
        weight = Fraction(1) if self.branch_first and passage.last < 0 else 1 - tape.gamma
        output, x, velocity = reversible.run_block(run, tape, entered, velocity, args, kwargs, weight)
        if lent is not None:
            lent.tell()
        if from_the_middle:
            # Only now: a checkpoint that needs no more than the block's inside has stopped by itself.
            raise ReconstructionError(
                f"block {block!r} of stream {self.name!r} is run again in backward from the middle of its stream, "
                "without its velocity (by torch.utils.checkpoint?), so gradients would be wrong. Take the checkpoint "
                "away, as the stream's blocks are recomputed anyway, or put the whole stream in one"
            )
        return reversible.with_stream(output, self._finish(passage, place, x, velocity))

    def _finish(self, passage: Passage, place: int, x: Tensor, velocity: Tensor | None) -> Tensor:
        tape = passage.tape
        if place < len(self.blocks) - 1:
            onward = Passage(
                tape, place, velocity, version(x), x.grad_fn, passage.unfinished, passage.rivals, passage.plan
            )
            self._passages.carry(x, onward)
            return x
        self._passages.finish()
        tape.rest()
        flushed = self.final_velocity == "flush"
        if flushed:
            x = reversible.flush(x, velocity, tape)
        ends.remember(x, tape, flush_factor(tape.gamma) if flushed else 0.0)
        return x

    def _start(self, x: Tensor, place: int) -> Passage:
        velocity = None if self.velocity_module is None else self.velocity_module(x)
        if velocity is not None and velocity.shape != x.shape:
            raise ConversionError(
                f"stream {self.name!r}: the initial velocity has shape {tuple(velocity.shape)}, the stream "
                f"{tuple(x.shape)}; the module given as initial_velocity must keep the shape"
            )
        tape, plan = self._new_tape(x, velocity, place)
        return Passage(tape, -1, velocity, version(x), x.grad_fn, Unfinished(), plan=plan)

    def _new_tape(
        self, x: Tensor, v: Tensor | None, place: int, *, from_start: bool = True
    ) -> tuple[Tape, ScalePlan | None]:
        """A tape whose state starts from ``x`` and ``v`` at ``place``, and how its scale was chosen."""
        graded = torch.is_grad_enabled()
        reversible_ = graded and self.backward == "reversible" and self.gamma > 0 and not x.is_nested
        state: State
        if not graded or self.gamma == 0 or x.is_nested:
            state = FloatState(x, v, self.gamma)
            return Tape(self.name, self.gamma, state, reversible=reversible_, graded=graded), None
        plan: ScalePlan = chosen(lambda: self._scale.plan_for(x, self.gamma, from_start=from_start and place == 0))
        # Activations that are stored cannot be made over, nor can a pass that may end before its last block.
        is_stored = self.backward == "stored" or place >= len(self.blocks) - self.kept
        careful = plan.careful or is_stored or self._passages.may_end_early
        from_start = from_start and place == 0
        try:
            state = self._state(x, v, plan, careful=careful)
        except NonFiniteBranch:
            logger.warning("stream %r starts from NaN or Inf; this pass runs in floats, activations stored", self.name)
            state, reversible_ = FloatState(x, v, self.gamma), False
        tape = Tape(self.name, self.gamma, state, reversible=reversible_, graded=graded)
        if isinstance(state, ExactState) or not careful:
            learn = _nothing_learnt if recomputing() else functools.partial(self._learn, from_start=from_start)
            begin = functools.partial(self._state, v=v, plan=plan, careful=True)
            tape.watch = Watch(state, learn, None if careful else x, begin, v)
        return tape, plan

    def _learn(self, seen: Sequence[Seen], state: State, *, from_start: bool) -> None:
        self._scale.learn(seen, state, from_start=from_start)

    def _state(self, x: Tensor, v: Tensor | None, plan: ScalePlan, *, careful: bool) -> State:
        if self.arithmetic == "float":
            reversible_ = self.backward == "reversible"
            return FloatState(x, v, self.gamma, finite_only=careful and reversible_)
        with torch.no_grad():
            resolution = plan.resolution
            return ExactState(
                x, v, self.gamma, plan.exponent, self.name, resolution.bits, word=resolution.word, careful=careful
            )

    def _resume_gradients(self, x: Tensor, passage: Passage) -> None:
        """Blocks that ran without gradients left a float state; the exact one starts from it where gradients begin."""
        if torch.is_grad_enabled() and not passage.tape.graded:
            wide = reversible.accumulation_dtype(x.dtype)
            velocity = passage.tape.last_state().velocity(wide)
            passage.tape, passage.plan = self._new_tape(x, velocity, passage.last + 1, from_start=False)
            passage.velocity = None


def _nothing_learnt(seen: Sequence[Seen], state: State) -> None:
    """A recompute has nothing to add to what its forward has taught."""


def _in_backward() -> bool:
    """Whether backward has called this code, but for the recomputes of the engine itself."""
    return torch._C._current_graph_task_id() != -1 and not recomputing()
