"""How a pass through a stream begins: its scale, by what earlier passes have taught, its state, and its tape."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.reports import has_values
from momentumnet.core.passes import reversible
from momentumnet.core.passes.carried import same_shape
from momentumnet.core.passes.collectives import Company
from momentumnet.core.passes.members import Members
from momentumnet.core.passes.mode import PassMode
from momentumnet.core.passes.packing import Packing
from momentumnet.core.passes.passage import Passage, Passages
from momentumnet.core.passes.settings import StreamSettings
from momentumnet.core.rewind.tape import Tape
from momentumnet.core.rules.momentum import Momentum
from momentumnet.core.scaling.scale import ScalePlan, StreamScale
from momentumnet.core.state.coupling import Coupling, NonFiniteBranch, State
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.late_check import LatePass, Unchecked, UnseenRests
from momentumnet.core.state.plain import PlainState
from momentumnet.core.state.range import Range
from momentumnet.core.state.watch import Seen, Watch
from momentumnet.core.tensors import transforms
from momentumnet.core.tensors.inference import gradients_on
from momentumnet.errors import CheckpointError, ConversionError
from momentumnet.recompute.surroundings.choices import chosen, recomputing
from momentumnet.recompute.values.counters import version

logger = logging.getLogger("momentumnet")


class PassStarts(StreamSettings):
    """What a stream has learned of its passes, and the beginning of another one.

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
        self._passages = Passages(name, blocks, self.arguments, flushes=self.final_velocity == "flush")
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
        """A pass from ``x`` at ``place``, in plain operations where a transform is at work."""
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
        self._unchecked.look()
        if not (graded := gradients_on()) or not coupling.is_reversible:
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
            readable=has_values(x),
            is_known=expected is not None,
        )
        state: State
        try:
            state = self._state(x, v, coupling, plan, careful=mode.careful)
        except NonFiniteBranch:
            logger.warning("stream %r starts from NaN or Inf; this pass runs in floats, activations stored", self.name)
            state, mode = coupling.floats(x, v), mode.in_floats()
        tape = self._tape(coupling, state, mode, expected)
        if isinstance(state, ExactState) or not mode.careful:
            learn = functools.partial(self._scale.learn, gamma=coupling.gamma, dtype=x.dtype, from_start=from_start)
            begin = functools.partial(self._state, v=v, coupling=coupling, plan=plan, careful=True)
            start = None if mode.careful or mode.late else x
            tape.watch = Watch(state, _nothing_learnt if recomputing() else learn, start, begin, v)
        return tape, plan

    def _tape(self, coupling: Coupling, state: State, mode: PassMode, expected: tuple[float, float] | None) -> Tape:
        """The tape of a pass with gradients that is run in this mode; the largest x and v at its end, if expected."""
        tape = Tape(self.name, coupling, state, reversible=mode.reversible, graded=True)
        tape.keeps_inputs = mode.keeps_inputs
        tape.in_company, tape.unseen = mode.in_company, UnseenRests(expected)
        if mode.late:
            tape.late = LatePass(tape.check_on_the_way)
        return tape

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
