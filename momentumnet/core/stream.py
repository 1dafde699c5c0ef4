"""A momentum stream: the settings that its blocks share, and how a block's call finds its velocity.

The blocks are called by code that knows nothing of velocities: a Sequential, a loop, anything. So the velocity travels
with the identity of the stream tensor: a block that receives the very tensor that an earlier block of the stream
returned goes on from there; the first block starts a new pass.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.layout import is_dense
from momentumnet.core import ends, reversible, transforms
from momentumnet.core.carried import same_shape
from momentumnet.core.checkpoint import Checkpoint
from momentumnet.core.collectives import Company
from momentumnet.core.coupling import Coupling, NonFiniteBranch, State, flush_factor
from momentumnet.core.exact_state import ExactState
from momentumnet.core.inference import gradients_on
from momentumnet.core.late_check import LatePass, Unchecked, UnseenRests
from momentumnet.core.members import Members
from momentumnet.core.mode import PassMode
from momentumnet.core.momentum import Momentum
from momentumnet.core.packing import Packing
from momentumnet.core.passage import Passage, Passages, rivals_of, tensors_among
from momentumnet.core.plain import PlainState
from momentumnet.core.range import Range
from momentumnet.core.scale import ScalePlan, StreamScale
from momentumnet.core.settings import StreamSettings
from momentumnet.core.tape import Tape
from momentumnet.core.watch import Seen, Watch
from momentumnet.errors import CheckpointError, ConversionError, ReconstructionError
from momentumnet.recompute import own_checkpoints
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

    Attributes:
        described_in: the config that is saved with its model, and says what its gamma is; None where there is none.
    """

    described_in: Any = None

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
        self._passages = Passages(name, blocks, self.arguments)
        self._packing = None
        if self.companions and self.arguments is not None:
            self._packing = Packing(name, blocks, self.arguments, self.companions)
        self._company = Company()
        self._unchecked = Unchecked()
        self.members = Members(name, blocks)

    def learned(self) -> dict[str, Any]:
        """What the stream has learned of its passes, as plain data."""
        return {
            "blocks": len(self.blocks),
            "may_end_early": self._passages.may_end_early,
            "scale": self._scale.state(),
        }

    def load_learned(self, learned: Mapping[str, Any]) -> None:
        """Know of earlier passes what `learned` gave.

        Raises:
            CheckpointError: it is something else, or belongs to another stream.
        """
        fields = self.learned().keys()
        if not isinstance(learned, Mapping) or learned.keys() != fields or type(learned["may_end_early"]) is not bool:
            raise CheckpointError(f"stream {self.name!r}: expected a mapping of {', '.join(fields)}, got {learned!r}")
        if learned["blocks"] != len(self.blocks):
            raise CheckpointError(
                f"stream {self.name!r} has {len(self.blocks)} blocks, and had {learned['blocks']} when this was saved"
            )
        self._scale.load_state(learned["scale"])
        self._passages.may_end_early = learned["may_end_early"]

    @contextmanager
    def scale_kept(self) -> Iterator[None]:
        """At the end, the stream knows of its magnitude what it knew before: the passes inside teach it nothing."""
        kept, self._scale = self._scale, copy.copy(self._scale)
        try:
            yield
        finally:
            self._scale = kept

    def call(
        self, block: str, module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call ``function(*args, **kwargs)`` as the next block of the stream; return what the parent gets.

        Raises:
            ConversionError: no stream tensor among the arguments, or one whose velocity has been lost; or blocks of
                the stream are gone.
            ReconstructionError: the block overwrites its input.
        """
        if not self._coupling(module).is_reversible and not self.branch_is_output and not self._goes_on(args, kwargs):
            if self.backward == "checkpointed":
                return Checkpoint().call(block, module, function, args, kwargs)
            return function(*args, **kwargs)
        if self._packing is None:
            return self._call_on(block, module, function, args, kwargs)
        return self._packing.call(self._call_on, self._passages.carries, block, module, function, args, kwargs)

    def _goes_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a pass that is under way comes with the arguments."""
        tensors = tensors_among(args, kwargs).values()
        return self._passages.goes_on(tensors if self._packing is None else self._packing.wholes_of(tensors))

    def _call_on(
        self, block: str, module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """`call` on the one tensor that is carried."""
        key, x, is_sure = self._passages.stream_argument(block, module, args, kwargs)
        passage = self._passages.take(x)
        place = self._passages.place_of(block, passage)
        from_the_middle = passage is None and place > 0 and _in_backward()
        transform = transforms.at_work(x)
        if passage is None:
            if self.backward != "stored":
                own_checkpoints.warn_of(module, block, self.name)
            passage = self._start(self._coupling(module), x, place, transform)
            passage.rivals = frozenset() if is_sure else rivals_of(x, args, kwargs)
        else:
            self._passages.check_handover(block, key, x, passage, transform)
        run = reversible.BlockRun(block, module, function, self.branch_is_output, place)
        velocity = None
        if isinstance(passage.tape, PlainState):
            output, x = reversible.run_plainly(run, passage.tape, x, args, kwargs, self._weight(passage))
        else:
            output, x, velocity = self._run(run, passage, passage.tape, x, args, kwargs)
        if from_the_middle:
            # Only now: a checkpoint that needs no more than the block's inside has stopped by itself.
            raise ReconstructionError(
                f"block {block!r} of stream {self.name!r} is run again in backward from the middle of its stream, "
                "without its velocity (by torch.utils.checkpoint?), so gradients would be wrong. Take the checkpoint "
                "away, as the stream's blocks are recomputed anyway, or put the whole stream in one"
            )
        return reversible.with_stream(output, self._finish(passage, place, x, velocity))

    def _run(
        self,
        run: reversible.BlockRun,
        passage: Passage,
        tape: Tape,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, Tensor, Tensor | None]:
        """The block's output as it came, the next x, and what carries the gradients of the next v."""
        tape = self._resume_gradients(x, passage, tape)
        lent = Lent(run.name, run.module, args, kwargs) if self.backward != "stored" else None
        if lent is not None:
            args, kwargs, run.own = lent.args, lent.kwargs, lent.names
        entered = x
        if tape.length == 0 and (isinstance(tape.state, ExactState) or (tape.recording and not is_dense(x))):
            # Floats, too, where x is a part of a larger tensor, or repeats one: what comes back of it is dense.
            entered = reversible.enter(x, tape)
        elif tape.length == 0 and x.is_inference():
            entered = tape.state.position(x.dtype)
        if entered is not x:
            args, kwargs = replace_stream(args, kwargs, x, entered)
        if run.place >= len(self.blocks) - self.kept:
            passage.tape = tape = tape.handed_on()
        run.coarsest = None if passage.plan is None else passage.plan.coarsest.get(run.place)
        self._company.block_begins()
        found = reversible.run_block(run, tape, entered, passage.velocity, args, kwargs, self._weight(passage))
        if self._company.block_ends() and tape.watch is not None:
            tape.watch.start = None  # others would not play it again
        if lent is not None:
            lent.tell()
        return found

    def _weight(self, passage: Passage) -> Fraction:
        """That of the branch in the rule."""
        first = passage.last < 0
        return Fraction(1) if self.branch_first and first else passage.coupling.draw_weight(first=first)

    def _finish(self, passage: Passage, place: int, x: Tensor, velocity: Tensor | None) -> Tensor:
        if self._scale.looks_for_spread and isinstance(passage.tape, Tape) and passage.tape.graded:
            self._scale.look_for_spread(x)
        if place < len(self.blocks) - 1:
            onward = replace(passage, last=place, velocity=velocity, counter=version(x), node=x.grad_fn)
            self._passages.carry(x, onward)
            return x
        self._passages.finish(passage)
        self._company.pass_ends()
        return self._ended(passage, x, velocity)

    def _ended(self, passage: Passage, x: Tensor, velocity: Tensor | None) -> Tensor:
        """What the stream returns when its last block has returned ``x``."""
        tape = passage.tape
        factor = flush_factor(passage.coupling.gamma) if self.final_velocity == "flush" else 0.0
        if isinstance(tape, PlainState):
            return tape.output(x.dtype, factor) if factor else x
        tape.rest()
        if self.final_velocity == "flush":
            x = reversible.flush(x, velocity, tape, factor)
        self._mark(tape, x)
        if self._packing is None:  # the parent is given parts of it
            ends.remember(x, tape, factor)
        tape.end()
        return x

    def _mark(self, tape: Tape, *outputs: Tensor) -> None:
        """What the stream returns tells by itself whether it is right, where nobody has looked yet."""
        if tape.check is not None:
            for output in outputs:
                tape.check.mark(output)
            self._unchecked.add(tape.check)

    def _coupling(self, module: nn.Module) -> Coupling:
        """The rule of a pass that begins now with the block ``module``."""
        return Momentum(self.gamma)

    def _first_velocity(self, x: Tensor) -> Tensor | None:
        """v at the start of a pass from ``x``."""
        if self.velocity_module is None:
            return None
        return (
            self.velocity_module(x) if self._packing is None else self._packing.first_velocity(self.velocity_module, x)
        )

    def _start(self, coupling: Coupling, x: Tensor, place: int, transform: str | None) -> Passage:
        # Without a velocity each block stands for itself; and backward may outlive the network that it goes through.
        if coupling.is_reversible and torch._C._current_graph_task_id() == -1:
            self.members.check()
        velocity = self._first_velocity(x)
        if velocity is not None and not same_shape(velocity, x):
            raise ConversionError(
                f"stream {self.name!r}: the initial velocity has shape {tuple(velocity.shape)}, the stream "
                f"{tuple(x.shape)}; the module given as initial_velocity must keep the shape"
            )
        tape: Tape | PlainState
        if transform is None:
            tape, plan = self._new_tape(coupling, x, velocity, place)
        else:
            tape, plan = coupling.plain(x, velocity), None
            if gradients_on() and self.backward != "stored" and coupling.is_reversible:
                transforms.tell(self.name, transform)
        return Passage(tape, coupling, -1, velocity, version(x), x.grad_fn, self._passages.unfinished(), plan=plan)

    def _new_tape(
        self, coupling: Coupling, x: Tensor, v: Tensor | None, place: int, *, from_start: bool = True
    ) -> tuple[Tape, ScalePlan | None]:
        """A tape whose state starts from ``x`` and ``v`` at ``place``, and how its scale was chosen."""
        graded = gradients_on()
        self._unchecked.look()
        if not graded or not coupling.is_reversible:
            return Tape(self.name, coupling, coupling.floats(x, v), reversible=False, graded=graded), None
        from_start = from_start and place == 0
        if self._scale.looks_for_spread:
            self._scale.look_for_spread(x, begins=True)
        plan: ScalePlan = chosen(lambda: self._scale.plan_for(x, coupling.gamma, from_start=from_start))
        expected = self._scale.largest_at(coupling.gamma)
        mode = PassMode.of(
            self,
            place,
            in_company=self._company.expected,
            may_end_early=self._passages.may_end_early,
            careful=plan.careful,
            is_known=expected is not None,
        )
        state: State
        try:
            state = self._state(x, v, coupling, plan, careful=mode.careful)
        except NonFiniteBranch:
            logger.warning("stream %r starts from NaN or Inf; this pass runs in floats, activations stored", self.name)
            state, mode = coupling.floats(x, v), mode.in_floats()
        tape = Tape(self.name, coupling, state, reversible=mode.reversible, graded=graded)
        tape.keeps_inputs = mode.keeps_inputs
        tape.in_company, tape.unseen = mode.in_company, UnseenRests(expected)
        if mode.late:
            tape.late = LatePass(tape.check_on_the_way)
        if isinstance(state, ExactState) or not mode.careful:
            learn = functools.partial(self._scale.learn, gamma=coupling.gamma, dtype=x.dtype, from_start=from_start)
            begin = functools.partial(self._state, v=v, coupling=coupling, plan=plan, careful=True)
            start = None if mode.careful or mode.late else x
            tape.watch = Watch(state, _nothing_learnt if recomputing() else learn, start, begin, v)
        return tape, plan

    def _state(self, x: Tensor, v: Tensor | None, coupling: Coupling, plan: ScalePlan, *, careful: bool) -> State:
        if self.arithmetic == "float":
            return coupling.floats(x, v, finite_only=careful and self.backward == "reversible")
        with torch.no_grad():
            found = plan.resolution
            return coupling.integers(x, v, plan.exponent, self.name, found.bits, word=found.word, careful=careful)

    def _resume_gradients(self, x: Tensor, passage: Passage, tape: Tape) -> Tape:
        """Blocks that ran without gradients left a float state; the exact one starts from it where gradients begin."""
        if gradients_on() and not tape.graded:
            wide = reversible.accumulation_dtype(x.dtype)
            velocity = tape.last_state().velocity(wide)
            passage.tape, passage.plan = self._new_tape(
                passage.coupling, x, velocity, passage.last + 1, from_start=False
            )
            passage.velocity = None
            return passage.tape
        return tape


def _nothing_learnt(seen: Sequence[Seen], scale: Range | None, largest: tuple[float, float] | None) -> None:
    """A recompute has nothing to add to what its forward has taught."""


def _in_backward() -> bool:
    """Whether backward has called this code, but for the recomputes of the engine itself."""
    return torch._C._current_graph_task_id() != -1 and not recomputing()
