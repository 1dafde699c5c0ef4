r"""The momentum step on integers, in plain PyTorch: the readable reference for the native kernels.

    (v, s) <- multiply (v, s) by n/d        F = round(f * factor)        factor = w * 2**k
    v <- v + F
    x <- x + v + [2s >= B2]

All tensors are 1-D and contiguous. Rewinding is cut in two, because the earlier x is needed before the branch is known:
`rewind` takes x back, `undo` then takes v and s back, and may take x back one step more (it goes *ahead*).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import packing
from momentumnet.arithmetic.fixed_point import Digits, Word


@dataclass
class Integers:
    """x, v and the store s of a stream: 1-D, of one word."""

    x: Tensor
    v: Tensor
    s: Tensor


@dataclass(frozen=True)
class Scale:
    """How floats become integers: ``integer = round(value * 2**exponent)``; a branch is weighted on the way."""

    word: Word
    exponent: int
    factor: float = 1.0  # weight * 2**exponent


@dataclass(frozen=True)
class Branch:
    """f of one block, 1-D: ``y`` itself, or ``y - x`` where the block has a skip of its own."""

    y: Tensor
    x: Tensor | None = None

    def value(self) -> Tensor:
        """f, in float32 at least where it is a difference."""
        if self.x is None:
            return self.y
        wide = torch.promote_types(torch.promote_types(self.y.dtype, self.x.dtype), torch.float32)
        return self.y.to(wide) - self.x.to(wide)


@dataclass(frozen=True)
class Move:
    """What one step does to the integers: adds a branch, by the store's digits, at a scale."""

    branch: Branch
    digits: Digits
    scale: Scale

    def branch_integers(self) -> Tensor:
        """F, the weighted branch."""
        return fp.to_fixed(self.branch.value(), self.scale.factor, self.scale.word)


def step(ints: Integers, move: Move, position: Tensor) -> tuple[bool, Tensor | None, int | None]:
    """Move on by one block; write the new x to ``position`` as floats.

    Returns:
        Whether the weighted branch, v and x all lie within +-limit (past it the step is still undone exactly, but means
        nothing); the store's byte that was put aside, if the digits say so; the checksum of the new state, where it
        comes for nothing.
    """
    branch_integers = move.branch_integers()
    v, ints.s, spilled = fp.multiply(ints.v, ints.s, move.digits)
    ints.v = v.add_(branch_integers)
    ints.x = ints.x.add_(ints.v).add_(fp.carry(ints.s, move.digits.next_bound))
    write_position(ints.x, move.scale, position)
    return _fits(ints, move.branch, move.scale), spilled[0] if spilled else None, None


def rewind(ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None:
    """Take x back by one step; ``bound`` is the present bound of the store."""
    ints.x = ints.x.sub_(ints.v).sub_(fp.carry(ints.s, bound))
    if position is not None:
        write_position(ints.x, scale, position)


def undo(ints: Integers, move: Move, spilled: Tensor | None, *, ahead: bool) -> int:
    """Take v and s back by one step, x being taken back already; then x once more, where it is to go ahead.

    Returns:
        The checksum of the state before x went ahead.
    """
    v = ints.v.sub_(move.branch_integers())
    ints.v, ints.s = fp.divide(v, ints.s, move.digits, () if spilled is None else (spilled,))
    checksum = checksum_of(ints)
    if ahead:
        rewind(ints, move.digits.previous_bound, move.scale, None)
    return checksum


def checksum_of(ints: Integers) -> int:
    """One integer that tells this state from another (see `fixed_point.checksum`)."""
    return int(fp.checksum(ints.x, ints.v, ints.s))


def write_position(x: Tensor, scale: Scale, position: Tensor) -> None:
    """Write x to ``position`` as floats of its dtype."""
    fp.write_float(x, scale.exponent, scale.word, position)


def pack(value: Tensor, field: packing.Field) -> Tensor:
    """The words that hold the fields of 1-D int32 integers (see `momentumnet.arithmetic.packing`)."""
    return packing.pack(value, field)


def unpack(words: Tensor, size: int, field: packing.Field) -> Tensor:
    """The integers from the words that hold their fields."""
    return packing.unpack(words, size, field)


def _fits(ints: Integers, branch: Branch, scale: Scale) -> bool:
    if not branch.y.numel():
        return True
    limit, kind = scale.word.limit, scale.word.compute_dtype
    low, high = torch.aminmax(branch.value())
    branch_extremes = torch.stack([low, high]).to(kind) * scale.factor
    integer_extremes = torch.stack([*torch.aminmax(ints.x), *torch.aminmax(ints.v)])
    low_int, high_int = int(integer_extremes.min()), int(integer_extremes.max())
    return bool((branch_extremes.abs() < limit).all()) and -limit <= low_int and high_int < limit
