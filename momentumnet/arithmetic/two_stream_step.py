r"""The step of two streams on integers, of which one is the other of a step before.

    (x, v) <- (a x + b v + F, x)        F = round(f * factor)        a x = round(n X / d), half to even

The block is called on x, and what it returns goes to the other stream, which is x then. With a = 0, b = 1 two steps are
``v += f(x); x += g(v)``: nothing is multiplied, so nothing is lost. Else |b| < 1 takes digits of v, which the store
keeps (`arithmetic.fixed_point`); a x is a function of x, which is there when the step is undone. The operations are
those of `arithmetic.momentum_step`, on the same integers. Rewinding x alone is to change the two: v is the earlier x,
and waits in x's place until `undo` takes from what was x all that came to it.

The store's digits stand for a fraction in [-1/2, 1/2) (`_centred`): they were lost by another x than the one that they
lie beside, and so they add no more than noise of mean 0, as large as that of rounding F.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled.selection import MomentumStep
from momentumnet.arithmetic.fixed_point import Digits
from momentumnet.arithmetic.momentum_step import Move, Scale, magnitude_of_branch, magnitude_of_integers
from momentumnet.arithmetic.packing import Field
from momentumnet.arithmetic.planes import Integers, Plane


class Coefficients:
    """a and b of a step, |a| + |b| <= 2: a sum below three times the word's limit, wrapped, is seen to be past it.

    Attributes:
        floats: both as floats: the compiler of PyTorch 2.11 cannot trace fractions.
    """

    def __init__(self, a: Fraction, b: Fraction) -> None:
        self.a, self.b = a, b
        self.floats = (float(a), float(b))


class TwoStreamStep:
    """The step in plain PyTorch; what has nothing to do with the rule is left to those who know it.

    Args:
        kernels: of the momentum step, for the device.
        coefficients: by the weight of the branch. The digits of a step are those of |b|; where v is 0 (a stream's
            first step), b may be 0 instead.
    """

    def __init__(self, kernels: MomentumStep, coefficients: Callable[[float], Coefficients]) -> None:
        self._kernels = kernels
        self._coefficients = coefficients

    def step(self, ints: Integers, move: Move, position: Tensor, report: Tensor) -> Tensor | None:
        word, digits, rule = move.scale.word, move.digits, self._coefficients(move.scale.weight)
        spilled = torch.empty(ints.size, dtype=torch.uint8, device=report.device) if digits.spills else None
        report.zero_()
        for where, piece in ints.pieces():
            x, v, s = piece.read()
            v, s, low_bytes = _multiplied(v, s, digits)
            if spilled is not None:
                spilled[where] = low_bytes[0]
            moved = _with_x(v if rule.b >= 0 else v.neg(), x, rule.a) + move.branch_integers(where)
            largest = torch.maximum(magnitude_of_branch(move, where), magnitude_of_integers(moved))
            report[0] = torch.maximum(report[0], largest)
            fp.write_float(word.wrap_(moved), move.scale.exponent, word, position[where])
            report[1] += fp.checksum(moved, x, s, where.start)
            piece.s.write(s)
            _write(piece, moved, x)
        return spilled

    def rewind(self, ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None:
        for where, piece in ints.pieces():
            x, v, _ = piece.read()
            if position is not None:
                fp.write_float(v, scale.exponent, scale.word, position[where])
            _write(piece, v.clone(), x)

    def advance(self, ints: Integers, bound: int) -> None:
        for _, piece in ints.pieces():
            x, v, _ = piece.read()
            _write(piece, v.clone(), x)

    def undo(
        self,
        ints: Integers,
        move: Move,
        spilled: Tensor | None,
        report: Tensor,
        *,
        ahead: bool,
        position: Tensor | None = None,
    ) -> None:
        word, digits, rule = move.scale.word, move.digits, self._coefficients(move.scale.weight)
        report.zero_()
        for where, piece in ints.pieces():
            x, v, s = piece.read()
            v = word.wrap_(v.sub(_with_x(move.branch_integers(where), x, rule.a)))
            v = v if rule.b >= 0 else v.neg_()
            v, s = _divided(v, s, digits, () if spilled is None else (spilled[where],))
            v = word.wrap_(v)
            report[1] += fp.checksum(x, v, s, where.start)
            piece.s.write(s)
            if ahead:
                _write(piece, v, x)
            else:
                piece.v.write(v)
        if ahead and position is not None:
            self.write_position(ints.x, move.scale, position)

    def checksum(self, ints: Integers, report: Tensor) -> None:
        self._kernels.checksum(ints, report)

    def start(self, ints: Integers, x: Tensor, v: Tensor | None, scale: Scale) -> None:
        self._kernels.start(ints, x, v, scale)

    def write_position(self, x: Plane, scale: Scale, position: Tensor) -> None:
        self._kernels.write_position(x, scale, position)

    def write_output(self, x: Plane, v: Plane, factor: float, scale: Scale, output: Tensor) -> None:
        self._kernels.write_output(x, v, factor, scale, output)

    def extremes(self, ints: Integers) -> Tensor:
        return self._kernels.extremes(ints)

    def pack(self, plane: Plane, field: Field) -> Tensor:
        return self._kernels.pack(plane, field)

    def unpack(self, words: Tensor, plane: Plane, field: Field) -> None:
        self._kernels.unpack(words, plane, field)


def _multiplied(v: Tensor, s: Tensor, digits: Digits) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """|b| v rounded to the nearest integer, and what `fixed_point.multiply` gives beside it."""
    if digits.n == digits.d:
        return v, s, ()
    v, s, spilled = fp.multiply(_centred(v, s, digits.previous_bound), s, digits)
    return v.add_(fp.carry(s, digits.next_bound)), s, spilled


def _divided(v: Tensor, s: Tensor, digits: Digits, spilled: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The inverse of `_multiplied`."""
    if digits.n == digits.d:
        return v, s
    v, s = fp.divide(_centred(v, s, digits.next_bound), s, digits, spilled)
    return v.add_(fp.carry(s, digits.previous_bound)), s


def _centred(v: Tensor, s: Tensor, bound: int) -> Tensor:
    """v less 1 where its digits are a fraction of a half or more: new integers."""
    return v - fp.carry(s, bound)


def _with_x(value: Tensor, x: Tensor, a: Fraction) -> Tensor:
    """``value`` + a x; ``value`` itself where a is 0."""
    if not a:
        return value
    return value + (x if a == 1 else fp.scaled(x, a))


def _write(piece: Integers, x: Tensor, v: Tensor) -> None:
    """Keep both; ``v`` first, as it may be the very memory of the piece's x."""
    piece.v.write(v)
    piece.x.write(x)
