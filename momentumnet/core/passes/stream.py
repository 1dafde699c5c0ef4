"""A momentum stream: the settings that its blocks share, and how a block's call finds its velocity.

The blocks are called by code that knows nothing of velocities: a Sequential, a loop, anything. So the velocity travels
with the identity of the stream tensor: a block that receives the very tensor that an earlier block of the stream
returned goes on from there; the first block starts a new pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.layout import is_dense
from momentumnet.core.outside import ends
from momentumnet.core.outside.checkpoint import Checkpoint
from momentumnet.core.passes import reversible
from momentumnet.core.passes.pass_start import PassStarts
from momentumnet.core.passes.passage import Passage, rivals_of, tensors_among
from momentumnet.core.rewind.tape import Tape
from momentumnet.core.state.coupling import flush_factor
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.plain import PlainState
from momentumnet.core.tensors import transforms
from momentumnet.errors import ReconstructionError
from momentumnet.recompute import own_checkpoints
from momentumnet.recompute.arguments.arguments import replace_stream
from momentumnet.recompute.arguments.caches import Lent
from momentumnet.recompute.surroundings.choices import recomputing
from momentumnet.recompute.values.counters import version


class MomentumStream(PassStarts):
    """One stream: what its blocks have in common, what it has learned of its values, and the call of one of its blocks.

    Args: those of `PassStarts`.

    Attributes:
        described_in: the config that is saved with its model, and says what its gamma is; None where there is none.
    """

    described_in: Any = None

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


def _in_backward() -> bool:
    """Whether backward has called this code, but for the recomputes of the engine itself."""
    return torch._C._current_graph_task_id() != -1 and not recomputing()
