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


def step(ints: Integers, move: Move, position: Tensor, report: Tensor) -> Tensor | None:
    """Move on by one block; write the new x to ``position`` as floats.

    ``report``, two integers, receives the magnitude of the new state and its checksum. The magnitude has as many bits
    as the largest of the weighted branch, v and x; at or above the word's limit, or negative, it says that one of them
    does not fit, NaN included (the step is still undone exactly, but means nothing).

    Returns:
        The store's byte that was put aside, if the digits say so.
    """
    branch_integers = move.branch_integers()
    v, ints.s, spilled = fp.multiply(ints.v, ints.s, move.digits)
    ints.v = v.add_(branch_integers)
    ints.x = ints.x.add_(ints.v).add_(fp.carry(ints.s, move.digits.next_bound))
    write_position(ints.x, move.scale, position)
    report[0] = _magnitude(ints, move)
    report[1] = fp.checksum(ints.x, ints.v, ints.s)
    return spilled[0] if spilled else None


def rewind(ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None:
    """Take x back by one step; ``bound`` is the present bound of the store."""
    ints.x = ints.x.sub_(ints.v).sub_(fp.carry(ints.s, bound))
    if position is not None:
        write_position(ints.x, scale, position)


def undo(ints: Integers, move: Move, spilled: Tensor | None, report: Tensor, *, ahead: bool) -> None:
    """Take v and s back by one step, x being taken back already; then x once more, where it is to go ahead.

    ``report`` receives 0 and the checksum of the state before x went ahead.
    """
    v = ints.v.sub_(move.branch_integers())
    ints.v, ints.s = fp.divide(v, ints.s, move.digits, () if spilled is None else (spilled,))
    checksum(ints, report)
    if ahead:
        rewind(ints, move.digits.previous_bound, move.scale, None)


def checksum(ints: Integers, report: Tensor) -> None:
    """0 and one integer that tells this state from another (see `fixed_point.checksum`) into ``report``."""
    report[0] = 0
    report[1] = fp.checksum(ints.x, ints.v, ints.s)


def write_position(x: Tensor, scale: Scale, position: Tensor) -> None:
    """Write x to ``position`` as floats of its dtype."""
    fp.write_float(x, scale.exponent, scale.word, position)


def pack(value: Tensor, field: packing.Field) -> Tensor:
    """The words that hold the fields of 1-D int32 integers (see `momentumnet.arithmetic.packing`)."""
    return packing.pack(value, field)


def unpack(words: Tensor, size: int, field: packing.Field) -> Tensor:
    """The integers from the words that hold their fields."""
    return packing.unpack(words, size, field)


def magnitude_of_floats(value: Tensor, factor: float, word: Word) -> Tensor:
    """The magnitude of ``value * factor`` as a step reports it: ``word.limit`` where it does not fit, NaN included."""
    if not value.numel():
        return torch.zeros((), dtype=word.dtype, device=value.device)
    extremes = torch.stack(torch.aminmax(value)).to(word.compute_dtype).mul_(factor).abs_()
    fits = (extremes < word.limit).all()
    return torch.where(fits, extremes.amax(), word.limit).to(word.dtype)


def fits(magnitude: int, word: Word) -> bool:
    """Whether the values of a step fit, by the magnitude that it reported."""
    return 0 <= magnitude < word.limit


def _magnitude(ints: Integers, move: Move) -> Tensor:
    largest = magnitude_of_floats(move.branch.value(), move.scale.factor, move.scale.word)
    if not move.branch.y.numel():
        return largest
    for value in (ints.x, ints.v):
        low, high = torch.aminmax(value)
        largest = torch.maximum(largest, torch.maximum(high, low.bitwise_not_()))
    return largest
