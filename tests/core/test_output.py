"""What a state returns at the end of its stream: x + factor v, from the packed state as from the open one."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import momentumnet as mn
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled import libraries
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.arithmetic.packing import BLOCK
from momentumnet.core.state.coupling import flush_factor
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.rest import MOST_PIECES, OUTPUT_PIECE, output_piece

GAMMA = Fraction(1, 8)
ELEMENTS = 3 * OUTPUT_PIECE + 5


def state_after_two_steps(dtype: torch.dtype = torch.float32, elements: int = ELEMENTS) -> ExactState:
    generator = torch.Generator().manual_seed(0)
    x, *branches = (torch.randn(elements, generator=generator).to(dtype) for _ in range(3))
    state = ExactState(x, None, GAMMA, 18, "stream")
    for branch in branches:
        state.step(Branch(branch, None), 1 - GAMMA)
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("factor", [0.0, flush_factor(GAMMA)])
def test_position_and_velocity_make_the_output(dtype: torch.dtype, factor: float) -> None:
    state = state_after_two_steps(dtype)
    x, v = state.position(torch.float64), state.velocity(torch.float64)
    expected = x + factor * v
    output = state.output(dtype, factor)
    assert output.dtype == dtype
    error = (output.double() - expected).abs()
    assert bool((error <= torch.finfo(dtype).eps * (x.abs() + v.abs())).all())


@pytest.mark.parametrize("factor", [0.0, flush_factor(GAMMA)])
@pytest.mark.parametrize("elements", [0, 7, ELEMENTS])
def test_packed_state_returns_the_same_bits_and_stays_packed(factor: float, elements: int) -> None:
    state = state_after_two_steps(elements=elements)
    expected = state.output(torch.float32, factor)
    state.pack()
    packed = state.packed_bytes
    assert torch.equal(state.output(torch.float32, factor), expected)
    assert state.packed_bytes == packed


def test_packed_state_is_unpacked_in_pieces() -> None:
    state = state_after_two_steps(elements=8 * OUTPUT_PIECE)
    state.pack()
    used = mn.measure_memory(lambda: state.output(torch.float32, 0.5))
    assert used.peak_bytes <= 4 * (8 + 6) * OUTPUT_PIECE


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_the_output_of_a_joint_state_in_motion_takes_no_more_than_itself(factor: float) -> None:
    """On a GPU its pieces are quarters: copies of x, v and the store made the peak of a ResNet-50's step."""
    x = torch.randn(8 * OUTPUT_PIECE).to(torch.bfloat16)
    state = ExactState(x, None, GAMMA, 14, "stream", word=fp.INT24)
    state.step(Branch(x, None), 1 - GAMMA)
    expected = state.position(torch.float64) + factor * state.velocity(torch.float64)
    used = mn.measure_memory(lambda: state.output(torch.bfloat16, factor))
    piece = 0 if libraries.cpu().library is not None else 2 * (4 + 4) * OUTPUT_PIECE
    assert used.peak_bytes <= x.nbytes + piece + 4096
    error = (state.output(torch.bfloat16, factor).double() - expected).abs()
    assert bool((error <= torch.finfo(torch.bfloat16).eps * expected.abs().clamp(min=1e-3)).all())


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    expected = state_after_two_steps().output(torch.float32, flush_factor(GAMMA))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(state_after_two_steps().output(torch.float32, flush_factor(GAMMA)), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1, OUTPUT_PIECE, 4 * OUTPUT_PIECE, 4 * OUTPUT_PIECE + 1, 51_380_224])
def test_a_gpu_is_given_few_pieces(size: int) -> None:
    piece = output_piece(size, torch.device("cuda"))
    assert piece >= OUTPUT_PIECE
    assert piece % BLOCK == 0
    assert -(-size // piece) <= MOST_PIECES
    assert output_piece(size, torch.device("cpu")) == OUTPUT_PIECE
