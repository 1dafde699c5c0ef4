"""The operators once more, from the plain PyTorch operations of fixed_point and reversible."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.core.reversible import branch_of


@dataclass(frozen=True)
class Case:
    """A state and one step's arguments, as the operators take them."""

    word: fp.Word
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


def step(case: Case) -> tuple[Case, Tensor]:
    """The case after its step, and the report."""
    push, product = case.scaled_branch()
    v, s, spilled = fp.multiply(case.v, case.s.clone(), case.digits)
    v = v + push
    x = case.x + v + fp.carry(s, case.digits.next_bound)
    sign = case.word.bits - 1
    bits = [int(value) for part in (x, v) for value in (part ^ (part >> sign)).tolist()]
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
    v, s = fp.divide(case.v - push, case.s.clone(), case.digits, spilled)
    return replace(case, v=v, s=s), torch.stack([v.new_tensor(0), fp.checksum(case.x, v, s)])


def rewind(case: Case, bound: int) -> Case:
    return replace(case, x=case.x - case.v - fp.carry(case.s, bound))
