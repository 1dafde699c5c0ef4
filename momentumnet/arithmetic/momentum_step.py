r"""The momentum step on integers, in plain PyTorch: the readable reference for the native kernels.

    (v, s) <- multiply (v, s) by n/d        F = round(f * factor)        factor = w * 2**k
    v <- v + F
    x <- x + v + [2s >= B2]

All tensors are 1-D and contiguous; a state is worked on in pieces, as it may lie in fewer bits than are computed with
(`arithmetic.planes`). What passes the bits of the word wraps around, and comes back when it is undone. Rewinding is cut
in two, because the earlier x is needed before the branch is known: `rewind` takes x back, `undo` then takes v and s
back, and may take x back one step more (it goes *ahead*).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import packing
from momentumnet.arithmetic.fixed_point import Digits, Word
from momentumnet.arithmetic.planes import Integers, Plane


@dataclass(frozen=True)
class Scale:
    """How floats become integers: ``integer = round(value * 2**exponent)``; a branch is weighted on the way."""

    word: Word
    exponent: int
    factor: float = 1.0  # weight * 2**exponent

    @property
    def weight(self) -> float:
        """That of a branch."""
        return math.ldexp(self.factor, -self.exponent)


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

    def at(self, where: slice) -> Branch:
        """A piece of it."""
        return Branch(self.y[where], None if self.x is None else self.x[where])


@dataclass(frozen=True)
class Move:
    """What one step does to the integers: adds a branch, by the store's digits, at a scale."""

    branch: Branch
    digits: Digits
    scale: Scale

    def branch_integers(self, where: slice) -> Tensor:
        """F, the weighted branch, of a piece."""
        return fp.to_fixed(self.branch.at(where).value(), self.scale.factor, self.scale.word)


def step(ints: Integers, move: Move, position: Tensor, report: Tensor) -> Tensor | None:
    """Move on by one block; write the new x to ``position`` as floats.

    ``report``, two integers, receives the magnitude of the new state and its checksum. The magnitude has as many bits
    as the largest of the weighted branch, v and x; at or above the word's limit, or negative, it says that one of them
    does not fit, NaN included (the step is still undone exactly, but means nothing).

    Returns:
        The store's byte that was put aside, if the digits say so.
    """
    word, digits = move.scale.word, move.digits
    spilled = torch.empty(ints.size, dtype=torch.uint8, device=report.device) if digits.spills else None
    report.zero_()
    for where, piece in ints.pieces():
        x, v, s = piece.read()
        v, s, low_bytes = fp.multiply(v, s, digits)
        if spilled is not None:
            spilled[where] = low_bytes[0]
        v = v.add_(move.branch_integers(where))
        largest = torch.maximum(magnitude_of_branch(move, where), magnitude_of_integers(v))
        x = x.add_(word.wrap_(v)).add_(fp.carry(s, digits.next_bound))
        report[0] = torch.maximum(report[0], torch.maximum(largest, magnitude_of_integers(x)))
        fp.write_float(word.wrap_(x), move.scale.exponent, word, position[where])
        report[1] += fp.checksum(x, v, s, where.start)
        piece.write(x, v, s)
    return spilled


def rewind(ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None:
    """Take x back by one step; ``bound`` is the present bound of the store."""
    for where, piece in ints.pieces():
        x, v, s = piece.read()
        piece.x.write(scale.word.wrap_(x.sub_(v).sub_(fp.carry(s, bound))))
        if position is not None:
            fp.write_float(x, scale.exponent, scale.word, position[where])


def advance(ints: Integers, bound: int) -> None:
    """The inverse of `rewind`: take x on by the v and s that are there."""
    for _, piece in ints.pieces():
        x, v, s = piece.read()
        piece.x.write(x.add_(v).add_(fp.carry(s, bound)))


def undo(
    ints: Integers,
    move: Move,
    spilled: Tensor | None,
    report: Tensor,
    *,
    ahead: bool,
    position: Tensor | None = None,
) -> None:
    """Take v and s back by one step, x being taken back already; then x once more, where it is to go ahead.

    A ``position`` receives the x that went ahead, as floats.

    ``report`` receives 0 and the checksum of the state before x went ahead.
    """
    word, digits = move.scale.word, move.digits
    report.zero_()
    for where, piece in ints.pieces():
        x, v, s = piece.read()
        v = word.wrap_(v.sub_(move.branch_integers(where)))
        v, s = fp.divide(v, s, digits, () if spilled is None else (spilled[where],))
        report[1] += fp.checksum(x, word.wrap_(v), s, where.start)
        if ahead:
            x = word.wrap_(x.sub_(v).sub_(fp.carry(s, digits.previous_bound)))
        piece.write(x, v, s)
    if ahead and position is not None:
        write_position(ints.x, move.scale, position)


def checksum(ints: Integers, report: Tensor) -> None:
    """0 and one integer that tells this state from another (see `fixed_point.checksum`) into ``report``."""
    report.zero_()
    for where, piece in ints.pieces():
        report[1] += fp.checksum(*piece.read(), where.start)


def start(ints: Integers, x: Tensor, v: Tensor | None, scale: Scale) -> None:
    """The integers of floats, and a store of zeros; without ``v`` that is zero, too."""
    factor = math.ldexp(1.0, scale.exponent)
    for where, piece in ints.pieces():
        first = fp.to_fixed(x[where], factor, scale.word)
        zeros = torch.zeros_like(first)
        piece.write(first, zeros if v is None else fp.to_fixed(v[where], factor, scale.word), zeros)


def write_position(x: Plane, scale: Scale, position: Tensor) -> None:
    """Write x (or v) to ``position`` as floats of its dtype."""
    first = 0
    for piece in x.pieces():
        fp.write_float(piece.read(), scale.exponent, scale.word, position[first : first + piece.size])
        first += piece.size


def write_output(x: Plane, v: Plane, factor: float, scale: Scale, output: Tensor) -> None:
    """Write x + factor v to ``output``; x and v lie alone, or joint with each other."""
    total = torch.empty_like(output, dtype=scale.word.compute_dtype)
    velocity = torch.empty_like(total)
    write_position(x, scale, total)
    write_position(v, scale, velocity)
    # Rounded one after the other: in one operation, bits would depend on where a piece or a thread begins.
    output.copy_(total.add_(velocity.mul_(factor)))


def extremes(ints: Integers) -> Tensor:
    """The smallest and the largest x, then those of v; or numbers beyond them that need no wider `packing.Field`.

    There has to be an element.
    """
    return torch.stack([*ints.x.extremes(), *ints.v.extremes()])


def pack(plane: Plane, field: packing.Field) -> Tensor:
    """The words that hold the fields of int32 integers (see `momentumnet.arithmetic.packing`)."""
    pieces = plane.pieces()
    if len(pieces) == 1:
        return packing.pack(plane.read(), field)
    words, first = plane.tensors[0].new_empty(packing.words_for(plane.size, field.width), dtype=torch.int32), 0
    for piece in pieces:
        packed = packing.pack(piece.read(), field)
        words[first : first + packed.numel()] = packed
        first += packed.numel()
    return words


def unpack(words: Tensor, plane: Plane, field: packing.Field) -> None:
    """The integers from the words that hold their fields into ``plane``."""
    first = 0
    for piece in plane.pieces():
        following = first + packing.words_for(piece.size, field.width)
        piece.write(packing.unpack(words[first:following], piece.size, field))
        first = following


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


def magnitude_of_branch(move: Move, where: slice) -> Tensor:
    """The magnitude of a piece of the weighted branch, as a step reports it."""
    return magnitude_of_floats(move.branch.at(where).value(), move.scale.factor, move.scale.word)


def magnitude_of_integers(value: Tensor) -> Tensor:
    """A number with as many bits as the largest magnitude among them. Overwrites nothing."""
    low, high = torch.aminmax(value)
    return torch.maximum(high, low.bitwise_not_())
