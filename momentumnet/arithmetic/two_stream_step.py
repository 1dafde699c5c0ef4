r"""The additive step of two streams on integers: nothing is multiplied, so nothing is lost and no store is needed.

    (x, v) <- (v + F, x)        F = round(f * factor)

The block is called on x, and what it returns goes to the other stream, which is x then: two steps are
``v += f(x); x += g(v)``. The operations are those of `arithmetic.momentum_step`, on the same integers, with a store
that holds zeros under a bound of 1. Rewinding x alone is to change the two: v is the earlier x, and waits in x's place
until `undo` takes F from what was x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled.selection import MomentumStep
from momentumnet.arithmetic.momentum_step import Move, Scale, magnitude_of_branch, magnitude_of_integers
from momentumnet.arithmetic.packing import Field
from momentumnet.arithmetic.planes import Integers, Plane


class TwoStreamStep:
    """The step in plain PyTorch; what has nothing to do with the rule is left to those who know it.

    Args:
        kernels: of the momentum step, for the device.
    """

    def __init__(self, kernels: MomentumStep) -> None:
        self._kernels = kernels

    def step(self, ints: Integers, move: Move, position: Tensor, report: Tensor) -> Tensor | None:
        word = move.scale.word
        report.zero_()
        for where, piece in ints.pieces():
            x, v, s = piece.read()
            moved = v.add(move.branch_integers(where))
            largest = torch.maximum(magnitude_of_branch(move, where), magnitude_of_integers(moved))
            report[0] = torch.maximum(report[0], largest)
            fp.write_float(word.wrap_(moved), move.scale.exponent, word, position[where])
            report[1] += fp.checksum(moved, x, s, where.start)
            _write(piece, moved, x)
        return None

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

    def undo(self, ints: Integers, move: Move, spilled: Tensor | None, report: Tensor, *, ahead: bool) -> None:
        report.zero_()
        for where, piece in ints.pieces():
            x, v, s = piece.read()
            v = move.scale.word.wrap_(v.sub(move.branch_integers(where)))
            report[1] += fp.checksum(x, v, s, where.start)
            if ahead:
                _write(piece, v, x)
            else:
                piece.v.write(v)

    def checksum(self, ints: Integers, report: Tensor) -> None:
        self._kernels.checksum(ints, report)

    def write_position(self, x: Plane, scale: Scale, position: Tensor) -> None:
        self._kernels.write_position(x, scale, position)

    def pack(self, plane: Plane, field: Field) -> Tensor:
        return self._kernels.pack(plane, field)

    def unpack(self, words: Tensor, plane: Plane, field: Field) -> None:
        self._kernels.unpack(words, plane, field)


def _write(piece: Integers, x: Tensor, v: Tensor) -> None:
    """Keep both; ``v`` first, as it may be the very memory of the piece's x."""
    piece.v.write(v)
    piece.x.write(x)
