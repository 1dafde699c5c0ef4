"""How a stream begins and what it returns, by the kernels on the CPU: the bits of the plain operations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import momentumnet as mn
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled import selection
from momentumnet.arithmetic.momentum_step import Scale
from momentumnet.arithmetic.packing import Field
from momentumnet.arithmetic.planes import Integers, Plane
from tests.arithmetic.compiled.cases import cases
from tests.arithmetic.compiled.reference import Case
from tests.arithmetic.compiled.variants import exact, needs_kernels

KERNELS = selection.NativeStep()
GUARD = 77.0


def guarded(case: Case) -> tuple[Tensor, Tensor]:
    """Floats to be written, and what lies behind them and has to stay."""
    memory = torch.full((case.x.numel() + 8,), GUARD, dtype=case.position_dtype)
    return memory[: case.x.numel()], memory[case.x.numel() :]


def check_start(case: Case) -> None:
    """Against the formula; memory that was there before shows what is not written."""
    y, scale = case.y.contiguous(), Scale(case.word, case.exponent)
    for v in (None, case.y.flip(0)):
        ints = case.laid_out()
        KERNELS.start(ints, y, v, scale)
        x, velocity, store = ints.read()
        assert torch.equal(x, fp.to_fixed(y, math.ldexp(1.0, case.exponent), case.word))
        expected = torch.zeros_like(x) if v is None else fp.to_fixed(v, math.ldexp(1.0, case.exponent), case.word)
        assert torch.equal(velocity, expected)
        assert not store.any()


def check_positions(case: Case) -> None:
    ints, scale = case.laid_out(), Scale(case.word, case.exponent)
    before = [tensor.clone() for tensor in ints.tensors]
    for plane, value in ((ints.x, case.x), (Plane.whole(case.v), case.v)):
        position, behind = guarded(case)
        KERNELS.write_position(plane, scale, position)
        assert torch.equal(position, fp.to_float(value, case.exponent, case.word, case.position_dtype))
        assert torch.all(behind == GUARD)
    assert all(map(torch.equal, ints.tensors, before))


def check_output(case: Case, factor: float) -> None:
    ints, scale = case.laid_out(), math.ldexp(1.0, -case.exponent)
    x, v = (value.to(case.word.compute_dtype) * scale for value in (case.x, case.v))
    before = [tensor.clone() for tensor in ints.tensors]
    for planes in ((ints.x, ints.v), (Plane.whole(case.x), Plane.whole(case.v))):
        output, behind = guarded(case)
        KERNELS.write_output(*planes, factor, Scale(case.word, case.exponent), output)
        assert torch.equal(output, (x + v * factor).to(case.position_dtype))
        assert torch.all(behind == GUARD)
    assert all(map(torch.equal, ints.tensors, before))


def check_extremes(case: Case) -> None:
    found = KERNELS.extremes(case.laid_out()).tolist()
    for value, low, high in ((case.x, *found[:2]), (case.v, *found[2:])):
        smallest, largest = int(value.min()), int(value.max())
        assert low <= smallest <= largest <= high
        assert Field.of(low, high) == Field.of(smallest, largest)


@given(case=cases())
@exact(300)
def test_a_state_starts_as_plain_operations_have_it(variant: str, case: Case) -> None:
    check_start(case)


@given(case=cases())
@exact(300)
def test_positions_are_those_of_plain_operations(variant: str, case: Case) -> None:
    check_positions(case)


@given(case=cases(), factor=st.floats(-200, 200, width=32))
@exact(300)
def test_outputs_are_rounded_one_after_the_other(variant: str, case: Case, factor: float) -> None:
    check_output(case, factor)


@given(case=cases().filter(lambda case: case.x.numel() > 0))
@exact(300)
def test_extremes_need_no_wider_field(variant: str, case: Case) -> None:
    check_extremes(case)


@needs_kernels
@pytest.mark.parametrize("value", [0, 1, -1, 5, -8, 8, -(1 << 22), (1 << 22) - 1])
@pytest.mark.parametrize("bits", [(32, 32), (32, 16), (24, 16)])
def test_extremes_of_one_value(value: int, bits: tuple[int, int]) -> None:
    ints = Integers.empty(bits, 3, torch.device("cpu"))
    ints.write(*(torch.full((3,), number, dtype=torch.int32) for number in (value, -value, 0)))
    low, high, *_ = KERNELS.extremes(ints).tolist()
    assert Field.of(low, high) == Field.of(value, value)
    assert low <= value <= high


@needs_kernels
@pytest.mark.usefixtures("_two_threads", "_threads")
@given(case=cases(size=70_001))
@exact(12)
def test_threads_share_the_elements(case: Case) -> None:
    check_start(case)
    check_positions(case)
    check_output(case, 1 / 7)
    check_extremes(case)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_pass_leaves_nothing_to_plain_operations(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a piece of a large state at a time, which on a GPU is hundreds of launches a block."""

    def refused(*_: object) -> None:
        raise AssertionError("plain operations work on the state piece by piece")

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Halved() for _ in range(4))).to(dtype)
    net, x = mn.convert(model, torch.randn(4, 8, dtype=dtype), gamma=1 / 8), torch.randn(4, 8, dtype=dtype)
    net(x).sum().backward()
    for name in ("start", "write_position", "write_output", "step", "undo", "rewind", "checksum"):
        monkeypatch.setattr(momentum_step, name, refused)
    if dtype is not torch.float64:  # which is not packed
        monkeypatch.setattr(Integers, "pieces", refused)
        monkeypatch.setattr(Plane, "pieces", refused)
    net(x).sum().backward()


class Halved(torch.nn.Module):
    """A residual block of small branches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.layer(x).tanh()
