"""Whether the native kernels compute here what plain PyTorch operations do.

Both walk a small state forth and back, and pack it on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.adjoint import by_operations, in_one_pass
from momentumnet.arithmetic.compiled import launching
from momentumnet.arithmetic.compiled.launching import DTYPES
from momentumnet.arithmetic.compiled.selection import MomentumStep, NativeStep
from momentumnet.arithmetic.fingerprint import FEW, look
from momentumnet.arithmetic.fixed_point import INT24, INT32, INT64, Word
from momentumnet.arithmetic.momentum_step import Branch, Move, Scale
from momentumnet.arithmetic.packing import Field
from momentumnet.arithmetic.planes import Integers, Plane

# Enough that two threads share it; odd, so that no vector and no group of elements comes out even.
ELEMENTS = 40_001
GAMMA = Fraction(1, 8)  # whose steps put a byte aside or not by turns
STEPS = 4
SPECIAL = (math.nan, math.inf, -math.inf, 1e30, -0.0)
FIELDS = (Field(24, True), Field(9, False), Field(32, True))

Values = Sequence[Tensor | int | None]


@dataclass(frozen=True)
class _Case:
    word: Word
    store_bits: int
    y: torch.dtype
    skip: torch.dtype | None  # type in which blocks see x, where their output contains it
    exponent: int


_CASES = (
    _Case(INT32, 16, torch.float32, None, 20),
    _Case(INT32, 16, torch.float32, torch.float32, 20),
    _Case(INT32, 32, torch.bfloat16, torch.bfloat16, 20),
    _Case(INT32, 32, torch.float16, torch.float32, 20),
    _Case(INT24, 16, torch.bfloat16, None, 14),
    _Case(INT24, 16, torch.float16, torch.float16, 14),
    _Case(INT64, 64, torch.float64, torch.float64, 48),
)


def difference(device: torch.device) -> str:
    """The operation of the native kernels for ``device`` whose result differs from plain PyTorch; empty if none does.

    Raises:
        MomentumNetError: There are no kernels for the device, or one of them fails.

    Example:
        ::

            assert difference(torch.device("cpu")) == ""
    """
    for case in _CASES:
        expected = _walk(momentum_step, case, device)
        for (operation, values), (_, others) in zip(_walk(NativeStep(), case, device), expected, strict=True):
            if not all(map(_same, values, others)):
                return operation
    if not all(_adjoints_agree(device, dtype) for dtype in DTYPES):
        return "adjoint"
    return "" if _looks_agree(device) else "look"


def _adjoints_agree(device: torch.device, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    grad_x, grad_v = (torch.randn(ELEMENTS, generator=generator).to(device, dtype) for _ in range(2))
    grad_x[: len(SPECIAL)] = torch.tensor(SPECIAL)
    found, expected = (
        compute(grad_x, grad_v.clone(), float(GAMMA), float(1 - GAMMA), branch_is_output=False, overwrite=True)
        for compute in (in_one_pass, by_operations)
    )
    return all(_same_floats(one, other) for one, other in zip(found, expected, strict=True))


def _looks_agree(device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(ELEMENTS, generator=generator).to(device)
    values = [numbers[::7][:FEW], numbers.to(torch.bfloat16)[1:4], numbers.double()[:2], numbers > 0]
    return torch.equal(launching.look(values), look(values))


def _same_floats(one: Tensor, other: Tensor) -> bool:
    """The same bits, or NaN in both: which NaN a half type holds depends on the instruction that rounded to it."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.dtype.itemsize]
    return bool(((one.view(integer) == other.view(integer)) | (one.isnan() & other.isnan())).all())


def _same(one: Tensor | int | None, other: Tensor | int | None) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def _walk(kernels: MomentumStep, case: _Case, device: torch.device) -> Iterator[tuple[str, Values]]:
    """Each operation by name, and all that it leaves behind."""
    ints, branches = _start(case, device)
    yield "checksum", [_checksum(kernels, ints)]
    schedule = fp.store_schedule(GAMMA, case.word)
    scale = Scale(case.word, case.exponent, math.ldexp(7, case.exponent - 3))
    undos = []
    for index, y in enumerate(branches):
        seen = torch.empty_like(y, dtype=case.skip)
        kernels.write_position(ints.x, scale, seen)
        yield "position", [seen]
        branch, position = Branch(y, None if case.skip is None else seen), torch.empty_like(y)
        report = ints.tensors[0].new_zeros(2)
        spilled = kernels.step(ints, Move(branch, schedule[index], scale), position, report)
        magnitude, checksum = report.tolist()
        yield "step", [int(momentum_step.fits(magnitude, case.word)), spilled, position, *_copies(ints)]
        yield "checksum", [checksum]
        undos.append((branch, schedule[index], spilled))
    yield from _ends(kernels, ints, branches[-1], scale)
    if case.word is not INT64:
        yield from _pack(kernels, ints)
    ahead = False
    for index, (branch, digits, spilled) in reversed(list(enumerate(undos))):
        if not ahead:
            floats = torch.empty_like(branch.y) if index > STEPS // 2 else None
            kernels.rewind(ints, digits.next_bound, scale, floats)
            yield "rewind", [floats, *_copies(ints)]
        ahead = index % 2 == 1
        report = ints.tensors[0].new_zeros(2)
        floats = torch.empty_like(branch.y) if ahead and index > STEPS // 2 else None
        kernels.undo(ints, Move(branch, digits, scale), spilled, report, ahead=ahead, position=floats)
        yield "undo", [floats, *_copies(ints)]
        yield "checksum", [report]


def _checksum(kernels: MomentumStep, ints: Integers) -> Tensor:
    report = ints.tensors[0].new_zeros(2)
    kernels.checksum(ints, report)
    return report


def _ends(kernels: MomentumStep, ints: Integers, y: Tensor, scale: Scale) -> Iterator[tuple[str, Values]]:
    """How a stream begins, and what it returns."""
    started, output = ints.clone(), torch.empty_like(y)
    kernels.start(started, y, None, scale)
    yield "start", [*started.tensors]
    kernels.write_output(ints.x, ints.v, 1 / 3, scale, output)
    yield "output", [output]
    lowest_x, highest_x, lowest_v, highest_v = map(int, kernels.extremes(ints))
    fields = Field.of(lowest_x, highest_x), Field.of(lowest_v, highest_v)
    yield "extremes", [number for field in fields for number in (field.width, int(field.signed))]


def _pack(kernels: MomentumStep, ints: Integers) -> Iterator[tuple[str, Values]]:
    for field in FIELDS:
        for index, plane in enumerate(ints.planes):
            words, value = kernels.pack(plane, field), torch.empty_like(ints.tensors[0])
            yield "pack", [words]
            kernels.unpack(words, Plane.whole(value), field)
            yield "unpack", [value]
            copies = ints.clone()
            kernels.unpack(words, copies.planes[index], field)
            yield "unpack", [*copies.tensors]


def _copies(ints: Integers) -> tuple[Tensor, ...]:
    return ints.clone().tensors


def _start(case: _Case, device: torch.device) -> tuple[Integers, list[Tensor]]:
    """The same state and branches each time; the last branch holds what fits no integer."""
    generator = torch.Generator().manual_seed(0)
    most = 1 << (case.exponent + 4)
    x, v = (torch.randint(-most, most, (ELEMENTS,), generator=generator).to(device, case.word.dtype) for _ in range(2))
    ints = Integers.empty((case.word.bits, case.store_bits), ELEMENTS, device)
    ints.write(x, v, torch.zeros_like(x))
    branches = [torch.randn(ELEMENTS, generator=generator) for _ in range(STEPS)]
    branches[-1][: len(SPECIAL)] = torch.tensor(SPECIAL)
    return ints, [branch.to(device, case.y) for branch in branches]
