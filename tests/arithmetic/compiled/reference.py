"""The operators once more, from the plain PyTorch operations of fixed_point and reversible.

x, v and s are integers of their own here, whatever they lie in when an operator works on them (`Case.laid_out`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.planes import Integers
from momentumnet.core.passes.reversible import branch_of


@dataclass(frozen=True)
class Case:
    """A state and one step's arguments, as the operators take them."""

    word: fp.Word
    store_bits: int
    x: Tensor
    v: Tensor
    s: Tensor
    y: Tensor
    digits: fp.Digits
    factor: float
    exponent: int
    skip: torch.dtype | None
    position_dtype: torch.dtype
    spilled: Tensor | None

    def copy(self) -> Case:
        spilled = None if self.spilled is None else self.spilled.clone()
        return replace(self, x=self.x.clone(), v=self.v.clone(), s=self.s.clone(), spilled=spilled)

    def scaled_branch(self) -> tuple[Tensor, Tensor]:
        """F, and the product before it is rounded."""
        branch = self.y
        if self.skip is not None:
            branch = branch_of(self.y, self.position(self.skip), branch_is_output=False).value()
        product = branch.to(self.word.compute_dtype) * self.factor
        return fp.to_fixed(branch, self.factor, self.word), product

    def position(self, dtype: torch.dtype | None = None) -> Tensor:
        return fp.to_float(self.x, self.exponent, self.word, dtype or self.position_dtype)

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x, self.v, self.s

    def laid_out(self) -> Integers:
        """The state as the operators take it."""
        if self.word is fp.INT24:
            high, low = (self.v >> 16) & 255, (self.v & 65535) << 16
            return Integers(self.x * 256 + high, low + self.s)
        # Of 16 bits without a sign, as int16 has them.
        store = self.s if self.store_bits == self.word.bits else (self.s - 65536 * (self.s >> 15)).to(torch.int16)
        return Integers(self.x.clone(), self.v.clone(), store.clone())

    def moved_to(self, ints: Integers) -> Case:
        """The same with another state."""
        return replace(self, x=ints.x.read(), v=ints.v.read(), s=ints.s.read())

    def wrapped(self, value: Tensor) -> Tensor:
        """What the word has bits for."""
        if self.word is not fp.INT24:
            return value
        return (value + (1 << 23)) % (1 << 24) - (1 << 23)


def step(case: Case) -> tuple[Case, Tensor]:
    """The case after its step, and the report."""
    push, product = case.scaled_branch()
    v, s, spilled = fp.multiply(case.v, case.s.clone(), case.digits)
    v = v + push
    x = case.x + case.wrapped(v) + fp.carry(s, case.digits.next_bound)
    sign = 8 * x.element_size() - 1
    bits = [int(value) for part in (x, v) for value in (part ^ (part >> sign)).tolist()]
    x, v = case.wrapped(x), case.wrapped(v)
    if not bool((product.abs() < case.word.limit).all()):
        bits.append(case.word.limit)
    magnitudes = 0
    for value in bits:
        magnitudes |= value
    after = replace(case, x=x, v=v, s=s, spilled=spilled[0] if spilled else None)
    return after, torch.stack([x.new_tensor(magnitudes), fp.checksum(x, v, s)])


def undo(case: Case) -> tuple[Case, Tensor]:
    """The case with v and s taken back, and the report."""
    push, _ = case.scaled_branch()
    spilled = () if case.spilled is None else (case.spilled,)
    v, s = fp.divide(case.wrapped(case.v - push), case.s.clone(), case.digits, spilled)
    v = case.wrapped(v)
    return replace(case, v=v, s=s), torch.stack([v.new_tensor(0), fp.checksum(case.x, v, s)])


def rewind(case: Case, bound: int) -> Case:
    return replace(case, x=case.wrapped(case.x - case.v - fp.carry(case.s, bound)))


def same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal, dtype and sign of zero included."""
    if one is None or other is None:
        return one is other
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(size), other.view(size))
