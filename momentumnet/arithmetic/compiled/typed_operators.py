"""The momentum step as PyTorch operators on the integer state, over the compiled kernels of csrc.

One pass over memory each, bit for bit what `momentumnet.arithmetic.fixed_point` computes:

    step      v <- v*n/d + F(f);  x <- x + v + carry;  position = x as a float
    undo      the inverse for v and s, then (where a position is wanted) x <- x - v - carry: the input before
    rewind    x <- x - v - carry
    checksum  of (x, v, s)
    pack      integers to the bits that they need, as `arithmetic.packing` lays them out; unpack is the inverse

All tensors are one-dimensional and contiguous, of the same length N; only ``y`` may have gaps. x, v and s are int32, or
int64 (with float64 as the type in which values are scaled); beside int32, s may be int16, and where it is None, x and v
are the two words of joint integers (`arithmetic.planes`). ``report`` has two elements of the type of x: the OR of
the magnitudes' bits after a step (a bit at or above ``word.limit`` means overflow, or a branch that does not fit,
NaN included), and `fixed_point.checksum` of the state.

The functions here are the typed faces of the operators ``torch.ops.momentumnet.*`` (`operators`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled import operators
from momentumnet.arithmetic.packing import Field
from momentumnet.arithmetic.planes import Plane


def step(
    x: Tensor,
    v: Tensor,
    s: Tensor | None,
    y: Tensor,
    digits: fp.Digits,
    *,
    factor: float,
    exponent: int,
    position: Tensor,
    report: Tensor,
    spilled: Tensor | None = None,
    skip: torch.dtype | None = None,
) -> None:
    """Move the state on by one block, in place: ``v <- v*n/d + F;  x <- x + v + carry(s)``.

    Args:
        x: integers (N,), like ``v`` and ``s``; the first words of joint integers.
        v: the velocity; or the second words.
        s: the store, int16 where it is short; None where the integers are joint.
        y: float tensor (N,): the branch f, or the block's output where ``skip`` is given.
        digits: the store's bounds in this step.
        factor: weight * 2**exponent; ``F = to_fixed(f, factor)``.
        exponent: the scale, value = integer * 2**-exponent.
        position: float tensor (N,) that receives the new x.
        report: two integers that receive the magnitudes' bits and the checksum.
        spilled: uint8 tensor (N,) that receives the store's low byte, where ``digits.spills`` is 1.
        skip: the type in which the block saw x, where y contains it: ``f = y - x``, as `reversible.branch_of` has it.

    Raises:
        ValueError: a tensor has another shape, type or device than described here.
        MomentumNetError: there are no kernels for these tensors.

    Example:
        ::

            x, v, s = (torch.zeros(8, dtype=torch.int32) for _ in range(3))
            digits = fp.store_schedule(fp.exact_gamma(0.9), fp.INT32)[0]
            position, report = torch.empty(8), torch.empty(2, dtype=torch.int32)
            step(x, v, s, torch.ones(8), digits, factor=2.0**20, exponent=20, position=position, report=report)
    """
    _check_spills(digits, spilled)
    operators.STEP(x, v, s, position, spilled, report, y, skip, *digits.constants, factor, exponent)


def undo(
    x: Tensor,
    v: Tensor,
    s: Tensor | None,
    y: Tensor,
    digits: fp.Digits,
    *,
    factor: float,
    exponent: int,
    report: Tensor,
    ahead: bool = False,
    position: Tensor | None = None,
    spilled: Tensor | None = None,
    skip: torch.dtype | None = None,
) -> None:
    """Take v and s back by one block; x is the block's input already (`rewind`, or a ``position`` asked for before).

    ``report`` receives 0 and the checksum of this earlier state. With ``ahead``, x then moves on to the input of the
    block before, which ``position`` receives, if given: one pass over memory instead of two. Arguments and errors as in
    `step`; ValueError also for a position without ``ahead``.
    """
    _check_spills(digits, spilled)
    if position is not None and not ahead:
        raise ValueError("undo writes a position only where it goes ahead; pass ahead=True, or no position")
    operators.UNDO(x, v, s, position, spilled, report, y, skip, *digits.constants, factor, exponent, ahead)


def rewind(
    x: Tensor, v: Tensor, s: Tensor | None, *, bound: int, exponent: int, position: Tensor | None = None
) -> None:
    """Take x back to the last block's input: ``x <- x - v - carry(s, bound)``; ``position`` receives it, if given.

    ``bound`` is the store's present one. Arguments and errors as in `step`.
    """
    operators.REWIND(x, v, s, position, bound, exponent)


def checksum(x: Tensor, v: Tensor, s: Tensor | None, *, report: Tensor) -> None:
    """`fixed_point.checksum` of the state into ``report[1]``; ``report[0]`` becomes 0."""
    operators.CHECKSUM(x, v, s, report)


def pack(plane: Plane, words: Tensor, field: Field) -> None:
    """Write the fields of the integers of ``plane``, N of them, to ``words``, int32, `packing.words_for` many.

    Raises:
        ValueError: a tensor has another shape, type or device than described here, or the field no width from 1 to 32.
        MomentumNetError: there are no kernels for these tensors.
    """
    operators.PACK(*(*plane.tensors, None)[:2], words, field.width, plane.place)


def unpack(words: Tensor, plane: Plane, field: Field) -> None:
    """The inverse of `pack`: ``words`` are read, ``plane`` is written. Errors as in `pack`."""
    operators.UNPACK(*(*plane.tensors, None)[:2], words, field.width, plane.place, field.signed)


def _check_spills(digits: fp.Digits, spilled: Tensor | None) -> None:
    if digits.spills != (spilled is not None):
        raise ValueError(
            f"digits with spills={digits.spills} need {digits.spills} tensor(s) of spilled bytes, "
            f"got {'none' if spilled is None else 'one'}; the kernels put aside one byte at most"
        )
