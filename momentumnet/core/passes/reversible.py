"""How a step is differentiated: three linear autograd functions and the run of one block between them.

The block keeps its own autograd graph, without its saved tensors (`recompute.saved.saved_tensors`). The functions here
move the integer state on the tape in forward; in backward they are the adjoint of a linear map and need nothing saved,
so they can be differentiated again. Quantisation counts as identity (straight-through).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.passes.carried import described, refusal_of_output, same_shape
from momentumnet.core.rewind.early_end import EarlyEnd
from momentumnet.core.rewind.steps import StepMove, TapeStep
from momentumnet.core.rewind.tape import Tape
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.plain import PlainState
from momentumnet.core.tensors.inference import gradients_on
from momentumnet.errors import ConversionError, ReconstructionError
from momentumnet.recompute.arguments.arguments import replace_stream
from momentumnet.recompute.replay import BlockCall
from momentumnet.recompute.saved.saved_tensors import SavedTensors
from momentumnet.recompute.saved.saved_values import SavedValues
from momentumnet.recompute.values.counters import version


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a velocity and its gradient: float64 for float64, else float32."""
    return dtype if dtype == torch.float64 else torch.float32


class _Enter(torch.autograd.Function):
    """x -> the stream's first x, quantised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tape: Tape) -> Tensor:
        ctx.late = tape.late
        return tape.last_state().position(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.late is not None:
            ctx.late.in_backward()
        return grad, None


class _Step(torch.autograd.Function):
    """(block output y, x, v) -> (x, v) after the step.

    The new v is a zero-stride placeholder: nobody reads its value, only gradients pass through it.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, v: Tensor | None, move: StepMove) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        # Not the move itself: the graph may outlive backward, the tape should not.
        ctx.coupling, ctx.weight = move.tape.coupling, float(move.weight)
        ctx.branch_is_output, ctx.late = move.branch_is_output, move.tape.late
        ctx.dtypes, ctx.has_velocity = (y.dtype, x.dtype), v is not None
        branch = branch_of(y, x, branch_is_output=move.branch_is_output)
        x = move.tape.advance(branch, y.dtype, move)
        dtype = ctx.coupling.velocity_dtype(y.dtype)
        return x, move.tape.nothing(dtype, y.device).expand(y.shape)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_v: Tensor | None) -> tuple[Tensor | None, ...]:
        y_dtype, x_dtype = ctx.dtypes
        if ctx.late is not None:
            ctx.late.in_backward()
        if grad_x is None:
            if grad_v is None:
                return None, None, None, None
            grad_x = torch.zeros_like(grad_v, dtype=y_dtype)
        if grad_v is None:
            grad_v = torch.zeros_like(grad_x, dtype=ctx.coupling.velocity_dtype(y_dtype))
        if x_dtype != y_dtype:
            grad_x, grad_v = grad_x.to(accumulation_dtype(x_dtype)), grad_v.to(accumulation_dtype(x_dtype))
        # The gradient of the placeholder goes from step to step and nowhere else, so nobody misses its memory; but a
        # backward that is itself differentiated must keep it.
        overwrite = not torch.is_grad_enabled()
        grad_branch, grad_velocity, grad_position = ctx.coupling.adjoint(
            grad_x, grad_v, ctx.weight, branch_is_output=ctx.branch_is_output, overwrite=overwrite
        )
        return (
            grad_branch.to(y_dtype) if ctx.needs_input_grad[0] else None,
            grad_position.to(x_dtype) if ctx.needs_input_grad[1] else None,
            grad_velocity if ctx.has_velocity else None,
            None,
        )


class _Flush(torch.autograd.Function):
    """(x, v) -> x + factor v at the end of a stream."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, tape: Tape, factor: float) -> Tensor:
        ctx.factor, ctx.narrow = factor, v.dtype == x.dtype
        return tape.output(x.dtype, ctx.factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        # In one operation: a half type is multiplied in float32.
        wide = grad if ctx.narrow else grad.to(accumulation_dtype(grad.dtype))
        return grad, wide * ctx.factor, None, None


class _Reveal(torch.autograd.Function):
    """The placeholder of v at the end of a stream -> v."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, tape: Tape, dtype: torch.dtype) -> Tensor:
        ctx.dtype = v.dtype
        return tape.velocity(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.to(ctx.dtype), None, None


def branch_of(output: Any, x: Tensor, *, branch_is_output: bool) -> Branch:
    """f = block(x) - x; or block(x) itself where the block has no skip of its own."""
    return Branch(stream_of(output).detach(), None if branch_is_output else x.detach())


def stream_of(output: Any) -> Any:
    """The stream tensor in a block's output: the output itself, or the first element of a tuple, list or mapping."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output:
        return output[0]
    if isinstance(output, dict) and output:
        return next(iter(output.values()))
    return None


def with_stream(output: Any, x: Tensor) -> Any:
    """The block's output with its stream tensor replaced by ``x``; the container keeps its type."""
    if isinstance(output, Tensor):
        return x
    if isinstance(output, dict):
        first = next(iter(output))
        output[first] = x
        return output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(x, *output[1:])
    return type(output)([x, *output[1:]])


@dataclass
class BlockRun:
    """One block on its way along the stream: what to call, and the names that errors use."""

    name: str
    module: nn.Module
    function: Callable[..., Any]
    branch_is_output: bool
    place: int
    coarsest: int | None = None
    own: frozenset[int | str] = frozenset()  # arguments that no other block is given


def enter(x: Tensor, tape: Tape) -> Tensor:
    """The stream's first x as the state carries it."""
    return _Enter.apply(x, tape)


def flush(x: Tensor, v: Tensor | None, tape: Tape, factor: float) -> Tensor:
    """The stream's output with what the velocity still holds back, ``factor`` times itself."""
    return tape.output(x.dtype, factor) if v is None else _Flush.apply(x, v, tape, factor)


def reveal(x: Tensor, v: Tensor | None, tape: Tape) -> Tensor:
    """The v that stands beside the stream's output ``x``."""
    return tape.velocity(x.dtype) if v is None else _Reveal.apply(v, tape, x.dtype)


def run_block(
    run: BlockRun,
    tape: Tape,
    x: Tensor,
    v: Tensor | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    weight: Fraction,
) -> tuple[Any, Tensor, Tensor | None]:
    """Run one block on the stream tensor ``x`` and make its step.

    Returns:
        The block's output as it came, the next x, and the next v: a placeholder that carries gradients, None without.

    Raises:
        ReconstructionError: the block overwrote its input.
        ConversionError: the block's output is no tensor of the stream's shape.
    """
    counter = version(x)
    step = None
    if tape.recording and (gradients_on() or tape.rewindable):
        step = _recorded_step(run, tape, x, args, kwargs, weight)
        saved = SavedTensors(run.name, functools.partial(tape.refill, tape.length), step.values)
        if tape.keeps_inputs or tape.beyond is not None:
            saved.keep_input(x)
        with saved.dropping():
            output = step.call.first(args, kwargs, may_be_taken_back=tape.can_be_made_over)
        step.first_run_ends(output)
    else:
        output = run.function(*args, **kwargs)
    _check_output(run, output, x, counter)
    y = stream_of(output)
    if not gradients_on() and not tape.rewindable:
        branch = branch_of(output, x, branch_is_output=run.branch_is_output)
        return output, tape.advance(branch, y.dtype, _move(run, tape, None, weight)), None
    wanted = y.requires_grad or x.requires_grad or (v is not None and v.requires_grad) or tape.rewindable
    x, v = _Step.apply(y, x, v, _move(run, tape, step, weight))
    if tape.watch is not None and tape.can_be_made_over and tape.beyond is None:
        tape.watch.hand_out(x, output)
    if not wanted:
        tape.forget()
    return output, x, v


def run_plainly(
    run: BlockRun, state: PlainState, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], weight: Fraction
) -> tuple[Any, Tensor]:
    """`run_block` by the rule in ordinary operations: the block's output as it came and the next x; raises the same."""
    counter = version(x)
    output = run.function(*args, **kwargs)
    _check_output(run, output, x, counter)
    return output, state.step(Branch(stream_of(output), None if run.branch_is_output else x), weight)


def _move(run: BlockRun, tape: Tape, step: TapeStep | None, weight: Fraction) -> StepMove:
    return StepMove(tape, step, weight, run.branch_is_output, run.place, run.coarsest)


def _recorded_step(
    run: BlockRun, tape: Tape, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], weight: Fraction
) -> TapeStep:
    tape.play_to_end()
    call = BlockCall(run.name, run.module, run.function, x, args, kwargs, run.own)
    branch = functools.partial(branch_of, branch_is_output=run.branch_is_output)
    exact = tape.keeps_inputs or isinstance(tape.state, ExactState)
    end = EarlyEnd(call.modules) if tape.keeps_inputs else None
    values = SavedValues(functools.partial(call.origins, x), exact=exact, saved=None if end is None else end.note)
    fingerprint = tape.state.fingerprint()
    strides = None if x.is_nested else x.stride()
    return TapeStep(call, tape.name, weight, branch, fingerprint, values, strides, whole=tape.keeps_inputs, end=end)


def _check_output(run: BlockRun, output: Any, x: Tensor, counter: int) -> None:
    if version(x) != counter:
        raise ReconstructionError(
            f"block {run.name!r} overwrites its own input in place, so the input cannot be reconstructed; use the "
            "out-of-place operation (inplace=False) at its start"
        )
    y = stream_of(output)
    if not isinstance(y, Tensor) or not same_shape(y, x) or not y.is_floating_point():
        got = described(y) if isinstance(y, Tensor) else type(output).__name__
        raise ConversionError(
            f"block {run.name!r} returned {got}; a block of a stream returns a floating-point tensor of its input's "
            f"shape, here {described(x)}, alone or first in a tuple, list or mapping"
        )
    refusal = refusal_of_output(y, x)
    if refusal is not None:
        raise ConversionError(f"block {run.name!r} returned a tensor that its stream cannot carry: {refusal}")


__all__ = [
    "BlockRun",
    "branch_of",
    "enter",
    "flush",
    "replace_stream",
    "reveal",
    "run_block",
    "run_plainly",
    "stream_of",
    "with_stream",
]
