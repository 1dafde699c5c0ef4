"""A coarser scale for integers that outgrow theirs: what it has to be, and the bits of x and v that it puts aside.

In place and in short pieces, so that what a rare change of scale needs beside the state stays small; exact, so that
`refine` undoes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.exponent import choose_exponent
from momentumnet.arithmetic.low_bits import join_low_bits, pack_low_bits, split_low_bits, unpack_low_bits
from momentumnet.arithmetic.momentum_step import Branch, Scale
from momentumnet.arithmetic.planes import Integers, Plane
from momentumnet.arithmetic.reports import read
from momentumnet.core.state.coupling import NonFiniteBranch
from momentumnet.errors import StateRangeError

# Elements that are taken to another scale at a time.
PIECE = 1 << 14


def coarser_exponent(largest: float, exponent: int, word: fp.Word, bits: int, stream: str) -> int:
    """The scale for values up to ``largest``, which do not fit ``exponent``; ``bits`` are those of `choose_exponent`.

    Raises:
        NonFiniteBranch: ``largest`` is no number that a scale could carry.
        StateRangeError: no scale can carry it.
    """
    if not math.isfinite(largest):
        raise NonFiniteBranch
    limit = math.ldexp(word.limit, -word.min_exponent)
    if largest >= limit or exponent <= word.min_exponent:
        raise StateRangeError(
            f"stream {stream!r}: the largest magnitude, {largest:.4g}, does not fit the exact state "
            f"(below {limit:.4g} with {word.dtype}). "
            "Lower the activations, run this stream in float64, or convert it with arithmetic='float'."
        )
    # At least one bit: what lies right at the edge is rounded here in another precision than in the step.
    return min(choose_exponent(largest, word, bits), exponent - 1)


def largest_of(ints: Integers, branch: Branch, weight: float, exponent: int) -> float:
    """Largest magnitude among the weighted branch, x and v; infinite where the branch holds NaN or Inf."""
    extremes = [*torch.aminmax(branch.value()), *ints.x.extremes(), *ints.v.extremes()]
    low, high, *integers = read(torch.stack([extreme.double() for extreme in extremes]))
    if not (math.isfinite(low) and math.isfinite(high)):
        return math.inf
    return max(-low * weight, high * weight, math.ldexp(max(map(abs, integers)), -exponent))


def coarsen(ints: Integers, bound: int, bits: int) -> tuple[Tensor, ...]:
    """Make the scale coarser by ``bits``, rounding to nearest; return what `refine` needs to undo it.

    The velocity is v + s/B, and s stays. So v + s/B rounded is what is divided: v alone would leave half a unit of
    bias, which a gamma near 1 carries on for many steps. ``bound`` is the present bound B of the store.
    """
    packed = []
    for piece, carry in _pieces(ints, bound):
        high_x, low_x = split_low_bits(piece.x.read(), bits)
        high_v, low_v = split_low_bits(piece.v.read() + carry, bits)
        piece.x.write(high_x)
        piece.v.write(high_v.sub_(carry))
        packed.append(pack_low_bits(low_x, low_v, bits))
    return tuple(map(torch.cat, zip(*packed, strict=True)))


def refine(ints: Integers, bound: int, bits: int, low_bits: tuple[Tensor, ...]) -> None:
    """The inverse of `coarsen`."""
    pieces = zip(*(part.split(PIECE) for part in low_bits), strict=True)
    for (piece, carry), packed in zip(_pieces(ints, bound), pieces, strict=True):
        low_x, low_v = unpack_low_bits(packed, bits)
        piece.x.write(join_low_bits(piece.x.read(), low_x, bits))
        piece.v.write(join_low_bits(piece.v.read() + carry, low_v, bits).sub_(carry))


def write_refined_position(x: Plane, bits: int, low_bits: tuple[Tensor, ...], scale: Scale, position: Tensor) -> None:
    """Write x alone as it was before `coarsen`, at its ``scale`` then, to ``position`` as floats."""
    pieces = zip(x.split(PIECE), position.split(PIECE), *(part.split(PIECE) for part in low_bits), strict=True)
    for piece, floats, *packed in pieces:
        low_x, _ = unpack_low_bits(tuple(packed), bits)
        fp.write_float(join_low_bits(piece.read(), low_x, bits), scale.exponent, scale.word, floats)


def _pieces(ints: Integers, bound: int) -> Iterator[tuple[Integers, Tensor]]:
    """The integers, and the carry."""
    for piece in ints.split(PIECE):
        yield piece, fp.carry(piece.s.read(), bound)
