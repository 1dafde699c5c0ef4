"""A momentum stream: the settings that its blocks share, and how a block's call finds its velocity.

The blocks are called by code that knows nothing of velocities: a Sequential, a loop, anything. So the velocity travels
with the identity of the stream tensor: a block that receives the very tensor that an earlier block of the stream
returned goes on from there; the first block starts a new pass.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.core import ends, reversible
from momentumnet.core.by_tensor import ByTensor
from momentumnet.core.coupling import FloatState, NonFiniteBranch, State, flush_factor
from momentumnet.core.exact_state import ExactState
from momentumnet.core.passage import Passage, Unfinished, rivals_of, tensors_among
from momentumnet.core.scale import StreamScale
from momentumnet.core.tape import Tape
from momentumnet.errors import ConversionError, ReconstructionError
from momentumnet.recompute.arguments import replace_stream, version
from momentumnet.recompute.choices import chosen, recomputing

logger = logging.getLogger("momentumnet")

ARITHMETICS = ("exact", "float")
BACKWARDS = ("reversible", "stored")
FINAL_VELOCITIES = ("flush", "drop")
# Relative gradient error of the float inverse past which the user is warned.
FLOAT_WARNING = 1e-3


class MomentumStream:
    """The settings of one stream, shared by its blocks.

    Args:
        name: the stream's name in messages.
        blocks: names of the blocks in call order; a block called several times stands several times.
        gamma: in [0, 1]; rounded to n/d with d <= 128. At 0 the blocks run as they are, with stored activations.
        arithmetic: "exact" (integers, bit for bit) or "float" (plain inverse, warns where it is no longer good).
        backward: "reversible" or "stored" (ordinary autograd, same arithmetic).
        branch_first: start the velocity from the first block's branch.
        final_velocity: "flush" adds gamma/(1-gamma) v at the end; "drop" does not.
        branch_is_output: the blocks return the branch f(x) itself, not x + f(x).
        magnitude: largest value to expect; None to take it from the first pass.
        kept: how many of the last blocks keep their activations, so that backward does not call them again.
    """

    def __init__(
        self,
        name: str,
        blocks: tuple[str, ...],
        gamma: float | Fraction,
        *,
        arithmetic: str = "exact",
        backward: str = "reversible",
        branch_first: bool = False,
        final_velocity: str = "flush",
        branch_is_output: bool = False,
        magnitude: float | None = None,
        kept: int = 0,
    ) -> None:
        _choice("arithmetic", arithmetic, ARITHMETICS)
        _choice("backward", backward, BACKWARDS)
        _choice("final_velocity", final_velocity, FINAL_VELOCITIES)
        self.name, self.blocks = name, blocks
        self.arithmetic, self.backward = arithmetic, backward
        self.branch_first, self.final_velocity = branch_first, final_velocity
        self.branch_is_output = branch_is_output
        self.kept = kept
        self.velocity_module: nn.Module | None = None
        self._places: dict[str, tuple[int, ...]] = {}
        for place, block in enumerate(blocks):
            self._places[block] = (*self._places.get(block, ()), place)
        self._scale = StreamScale(name, magnitude, len(blocks))
        self._carried: ByTensor[Passage] = ByTensor()
        self._unfinished: Callable[[], Unfinished | None] = _none
        self.set_gamma(gamma)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unfinished": _none}

    def set_gamma(self, gamma: float | Fraction) -> None:
        """Change gamma from the next pass on."""
        ratio = exact_gamma(gamma)
        if ratio == 1 and self.final_velocity == "flush":
            raise ValueError(
                f"stream {self.name!r}: gamma=1 leaves nothing to flush (gamma/(1-gamma) is infinite); use "
                "final_velocity='drop' or gamma < 1"
            )
        self.gamma = ratio
        if ratio == 0 and self.backward == "reversible":
            logger.warning("stream %r: gamma=0 has no velocity to invert; it runs with stored activations", self.name)
        if self.arithmetic == "float" and self.backward == "reversible" and 0 < ratio < 1:
            self._warn_of_float_error()

    @contextmanager
    def scale_kept(self) -> Iterator[None]:
        """At the end, the stream knows of its magnitude what it knew before: the passes inside teach it nothing."""
        kept, self._scale = self._scale, copy.copy(self._scale)
        try:
            yield
        finally:
            self._scale = kept

    def _warn_of_float_error(self) -> None:
        digits_lost = -len(self.blocks) * math.log10(self.gamma)
        if math.log10(torch.finfo(torch.float32).eps) + digits_lost > math.log10(FLOAT_WARNING):
            warnings.warn(
                f"stream {self.name!r}: arithmetic='float' at gamma={float(self.gamma):.4g} over {len(self.blocks)} "
                f"blocks loses about {digits_lost:.0f} of float32's 7 digits on the way back, so gradients are off by "
                f"more than {FLOAT_WARNING:g}; use arithmetic='exact'",
                stacklevel=4,
            )

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
        key, x = self._stream_argument(block, args, kwargs)
        passage = self._carried.take(x)
        place = self._place(block, passage)
        from_the_middle = passage is None and place > 0 and _in_backward()
        if passage is None:
            passage = self._start(x)
            passage.rivals = rivals_of(x, args, kwargs)
        else:
            self._check_handover(block, key, x, passage)
        self._resume_gradients(x, passage)
        tape, velocity, entered = passage.tape, passage.velocity, x
        if tape.length == 0 and isinstance(tape.state, ExactState):
            entered = reversible.enter(x, tape)
            args, kwargs = replace_stream(args, kwargs, x, entered)
        if place >= len(self.blocks) - self.kept:
            passage.tape = tape = tape.handed_on()
        run = reversible.BlockRun(block, module, function, self.branch_is_output)
        weight = Fraction(1) if self.branch_first and passage.last < 0 else 1 - tape.gamma
        output, x, velocity = reversible.run_block(run, tape, entered, velocity, args, kwargs, weight)
        self._scale.remember(tape.state)
        if from_the_middle:
            # Only now: a checkpoint that needs no more than the block's inside has stopped by itself.
            raise ReconstructionError(
                f"block {block!r} of stream {self.name!r} is run again in backward from the middle of its stream, "
                "without its velocity (by torch.utils.checkpoint?), so gradients would be wrong. Take the checkpoint "
                "away, as the stream's blocks are recomputed anyway, or put the whole stream in one"
            )
        return reversible.with_stream(output, self._finish(passage, place, x, velocity))

    def _finish(self, passage: Passage, place: int, x: Tensor, velocity: Tensor | None) -> Tensor:
        tape, unfinished = passage.tape, passage.unfinished
        if place < len(self.blocks) - 1:
            unfinished.last = place
            self._keep_unfinished(x, unfinished)
            self._carried.put(x, Passage(tape, place, velocity, version(x), x.grad_fn, unfinished, passage.rivals))
            return x
        self._unfinished = _none
        flushed = self.final_velocity == "flush"
        if flushed:
            x = reversible.flush(x, velocity, tape)
        tape.rest()
        ends.remember(x, tape, flush_factor(tape.gamma) if flushed else 0.0)
        return x

    def _keep_unfinished(self, x: Tensor, unfinished: Unfinished) -> None:
        """The graph keeps the mark alive; without a graph nothing else would, and a lost velocity would go unseen."""
        if x.grad_fn is not None:
            x.grad_fn.register_prehook(unfinished.end)
            self._unfinished = weakref.ref(unfinished)
        else:
            self._unfinished = lambda: unfinished

    def _check_handover(self, block: str, key: int | str, x: Tensor, passage: Passage) -> None:
        """The tensor is as the last block returned it, and stands where the first block's did."""
        last = self.blocks[passage.last]
        if version(x) != passage.counter:
            raise ConversionError(
                f"stream {self.name!r}: the tensor that block {last!r} returned was changed in place before block "
                f"{block!r} received it; make that change out of place, outside the stream"
            )
        if x.grad_fn is not passage.node:
            raise ConversionError(
                f"stream {self.name!r}: the tensor that block {last!r} returned has got another place in the autograd "
                f"graph before block {block!r} received it, so the gradient of its velocity is lost. Something calls "
                f"block {last!r} inside a function of its own, as torch.utils.checkpoint(use_reentrant=True) does; "
                "take it away (the stream's blocks are recomputed anyway), or pass use_reentrant=False"
            )
        if key in passage.rivals:
            raise ConversionError(
                f"stream {self.name!r} began with another argument of its first block than argument {key!r}, in which "
                f"block {block!r} receives it; pass the stream tensor as the blocks' first argument"
            )

    def _stream_argument(self, block: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, Tensor]:
        tensors = tensors_among(args, kwargs)
        for key, tensor in tensors.items():
            if self._carried.get(tensor) is not None:
                return key, tensor
        for key, tensor in tensors.items():
            if tensor.is_floating_point():
                return key, tensor
        raise ConversionError(
            f"block {block!r} of stream {self.name!r} was called without a floating-point tensor among its "
            "arguments; a tensor inside a list or mapping cannot carry a stream"
        )

    def _place(self, block: str, passage: Passage | None) -> int:
        last = -1 if passage is None else passage.last
        place = next((place for place in self._places[block] if place > last), None)
        if place is None:
            raise ConversionError(
                f"block {block!r} of stream {self.name!r} was called after block {self.blocks[last]!r}; the stream "
                f"found in the example inputs was {list(self.blocks)}. Convert with example inputs that take this path"
            )
        unfinished = self._unfinished()
        if passage is None and place > 0 and unfinished is not None and not unfinished.over:
            raise ConversionError(
                f"block {block!r} of stream {self.name!r} received a tensor that block "
                f"{self.blocks[unfinished.last]!r} did not return, so its velocity is lost. Something between "
                "the two blocks replaces the tensor; convert with streams=[...] so that the stream ends there"
            )
        return place

    def _start(self, x: Tensor) -> Passage:
        velocity = None if self.velocity_module is None else self.velocity_module(x)
        if velocity is not None and velocity.shape != x.shape:
            raise ConversionError(
                f"stream {self.name!r}: the initial velocity has shape {tuple(velocity.shape)}, the stream "
                f"{tuple(x.shape)}; the module given as initial_velocity must keep the shape"
            )
        tape = self._new_tape(x, velocity)
        return Passage(tape, -1, velocity, version(x), x.grad_fn, Unfinished())

    def _new_tape(self, x: Tensor, velocity: Tensor | None) -> Tape:
        graded = torch.is_grad_enabled()
        reversible_ = graded and self.backward == "reversible" and self.gamma > 0 and not x.is_nested
        state: State
        try:
            if not graded or self.arithmetic == "float" or self.gamma == 0 or x.is_nested:
                state = FloatState(x, velocity, self.gamma, finite_only=reversible_)
            else:
                with torch.no_grad():
                    exponent = chosen(lambda: self._scale.exponent_for(x, self.gamma))
                    bits = self._scale.bits_for(x.dtype, self.gamma)
                    state = ExactState(x, velocity, self.gamma, exponent, self.name, bits)
        except NonFiniteBranch:
            logger.warning("stream %r starts from NaN or Inf; this pass runs in floats, activations stored", self.name)
            state, reversible_ = FloatState(x, velocity, self.gamma), False
        return Tape(self.name, self.gamma, state, reversible=reversible_, graded=graded)

    def _resume_gradients(self, x: Tensor, passage: Passage) -> None:
        """Blocks that ran without gradients left a float state; the exact one starts from it where gradients begin."""
        if torch.is_grad_enabled() and not passage.tape.graded:
            wide = reversible.accumulation_dtype(x.dtype)
            passage.tape = self._new_tape(x, passage.tape.last_state().velocity(wide))
            passage.velocity = None


def _in_backward() -> bool:
    """Whether backward has called this code, but for the recomputes of the engine itself."""
    return torch._C._current_graph_task_id() != -1 and not recomputing()


def _none() -> None:
    """No pass is under way."""


def _choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
