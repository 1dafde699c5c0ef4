"""A state in motion: 8 bytes an element in half precision, 10 in float32, with all that the wide integers could do."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import momentumnet as mn
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled import selection
from momentumnet.arithmetic.exponent import choose_exponent
from momentumnet.arithmetic.fixed_point import INT24, INT32
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.scaling.resolution import HALF_BITS, JOINT_BITS
from momentumnet.core.state.coupling import flush_factor
from momentumnet.core.state.exact_state import SMALL_STREAM, ExactState
from momentumnet.errors import StateRangeError
from tests.arithmetic.strategies import exact, gammas, layouts, shapes
from tests.core.states import Snapshot, assert_comes_back, random_tensor, step_of, undo_all

EIGHTH = Fraction(1, 8)
half_dtypes = st.sampled_from([torch.bfloat16, torch.float16])


def joint(x: torch.Tensor, gamma: Fraction, magnitude: float, bits: int = HALF_BITS, **options: bool) -> ExactState:
    exponent = choose_exponent(magnitude, INT24, bits)
    return ExactState(x, None, gamma, exponent, "stream", bits, word=INT24, **options)


@pytest.fixture(params=["kernels", "plain PyTorch"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain PyTorch":
        monkeypatch.setattr(selection, "for_device", lambda device: momentum_step)
    elif not mn.native.available():
        pytest.skip(f"no native kernels: {mn.native.reason()}")


@given(st.data(), gammas.filter(fp.has_short_store), half_dtypes, shapes, layouts, st.sampled_from([14, 17, 21]))
@exact(100)
def test_any_stream_of_24_bits_comes_back_bit_for_bit(data, gamma, dtype, shape, layout, bits: int) -> None:
    """As with wide words: branches of all magnitudes, a scale made coarser on the way, packed in between or not."""
    seed = data.draw(st.integers(0, 1 << 20))
    state = joint(random_tensor(seed, shape, 1.0, dtype, layout), gamma, 4.0, bits)
    assert_comes_back(data, state, gamma, seed, shape, half_dtypes, most=30)


@pytest.mark.usefixtures("_implementation")
@given(st.integers(0, 1 << 20), gammas.filter(fp.has_short_store), half_dtypes)
@exact(40)
def test_the_numbers_are_those_of_wide_words(seed: int, gamma: Fraction, dtype: torch.dtype) -> None:
    """At one scale, where values fit both: x, v, s, positions, checksums and outputs are the same bits."""
    exponent = choose_exponent(8.0, INT24, JOINT_BITS)
    narrow, wide = (
        ExactState(random_tensor(seed, (33,), 1.0, dtype), None, gamma, exponent, "s", JOINT_BITS, word=word)
        for word in (INT24, INT32)
    )
    for layer in range(12):
        branch = Branch(random_tensor(seed + layer + 1, (33,), 1.0, dtype), narrow.position(dtype))
        one, other = (state.step(branch, max(1 - gamma, EIGHTH)) for state in (narrow, wide))
        assert one.low_bits is other.low_bits is None
        assert Snapshot.of(narrow).is_of(wide)
        assert int(narrow.report[1]) == int(wide.report[1])
        assert momentum_step.fits(int(narrow.report[0]), INT24)
    factor = flush_factor(EIGHTH)
    expected = wide.output(dtype, factor)
    assert torch.equal(narrow.output(dtype, factor), expected)
    assert narrow.extremes().tolist() == wide.extremes().tolist()
    for state in (narrow, wide):
        state.pack()
    assert narrow.packed_bytes == wide.packed_bytes
    assert torch.equal(narrow.output(dtype, factor), expected)
    assert Snapshot.of(narrow).is_of(wide)


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("where", ["branch", "x", "v"])
def test_values_past_22_bits_are_seen(where: str) -> None:
    """By a careful state, which makes its scale coarser; by another in its report, unread."""
    for careful in (True, False):
        x, v = torch.zeros(9, dtype=torch.bfloat16), torch.zeros(9, dtype=torch.bfloat16)
        branch = torch.zeros(9, dtype=torch.bfloat16)
        exponent = choose_exponent(1.0, INT24, JOINT_BITS)
        most = math.ldexp(INT24.limit, -exponent)
        {"branch": branch, "x": x, "v": v}[where][4] = 0.75 * most
        state = ExactState(x, v, Fraction(1), exponent, "s", JOINT_BITS, word=INT24, careful=careful)
        assert not state.unfit(int(state.report[0])), "at the start all fits"
        before = Snapshot.of(state)
        undos = [(state.step(Branch(branch), Fraction(1)), branch)]
        if where == "x":  # becomes twice as large
            branch = torch.zeros_like(branch)
            branch[4] = 0.75 * most
        undos.append((state.step(Branch(branch), Fraction(1)), branch))
        assert state.unfit(int(state.report[0])) is not careful
        assert any(undo.widened_bits for undo, _ in undos) is careful
        if careful:
            assert float(state.position(torch.float32)[4]) >= 1.5 * most
        for undo, moved in reversed(undos):
            state.undo(undo, Branch(moved), Fraction(1))
        assert before.is_of(state), "even what wrapped around is undone"


def test_what_32_bits_carry_24_bits_carry_in_coarser_units() -> None:
    state = joint(torch.ones(3, dtype=torch.bfloat16), Fraction(1, 2), 1.0, bits=21)
    first = step_of(state, torch.tensor([1.0, 2.0, 2e7], dtype=torch.bfloat16), Fraction(1, 2))
    assert INT24.min_exponent < state.exponent < 0
    step = step_of(state, torch.tensor([1.0, -1.9e9, 2.0], dtype=torch.bfloat16), Fraction(1, 2))
    assert state.exponent == INT24.min_exponent == -8
    assert float(state.position(torch.float64)[1]) == pytest.approx(-0.95e9, rel=0.01)
    with pytest.raises(StateRangeError, match=r"below 1\.074e\+09"):
        state.step(Branch(torch.full((3,), 4e9, dtype=torch.bfloat16)), Fraction(1, 2))
    undo_all(state, [first, step])


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize(
    ("dtype", "word", "gamma", "most"),
    [
        (torch.bfloat16, INT24, EIGHTH, 8),
        (torch.float16, INT24, Fraction(9, 10), 8),
        (torch.float32, INT32, EIGHTH, 10),
        (torch.float32, INT32, Fraction(9, 10), 10),
        (torch.float32, INT32, Fraction(127, 128), 12),
    ],
)
def test_bytes_an_element_that_a_state_holds(dtype: torch.dtype, word: fp.Word, gamma: Fraction, most: int) -> None:
    """After a start, a step, a rewind and its undoing, packed and unpacked; and in a fork."""
    elements, rows = 1 << 20, 64 * 2 * 4
    x, branch = torch.ones(elements, dtype=dtype), Branch(torch.ones(elements, dtype=dtype))

    def held(use: str) -> int:
        kept = []

        def run() -> None:
            state = ExactState(x, None, gamma, 10, "stream", HALF_BITS, word=word)
            undo = state.step(branch, 1 - gamma) if use != "started" else None
            if use == "undone":
                state.undo(undo, branch, 1 - gamma)
            elif use == "packed and opened":
                state.pack()
                state.previous_position(undo, dtype)
            elif use == "forked":
                state = state.fork()
            state._ready = None  # the next block's input, which is handed out
            kept.append(state)

        return mn.measure_memory(run).saved_bytes

    for use in ("started", "stepped", "undone", "packed and opened", "forked"):
        assert most * elements <= held(use) <= most * elements + rows, use


@pytest.mark.parametrize(("elements", "passes"), [(1 << 12, 0), (SMALL_STREAM, 0), (SMALL_STREAM + 1, 2)])
def test_an_undo_leaves_the_next_input_of_a_short_stream(
    elements: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer one's would lie beside the saved tensors of the block before: it is written when it is asked for."""
    x = random_tensor(0, (elements,), 1.0, torch.bfloat16)
    state = joint(x, EIGHTH, 4.0)
    inputs, undos, branch = [], [], Branch(random_tensor(1, (elements,), 1.0, torch.bfloat16))
    for _ in range(3):
        inputs.append(state.position(x.dtype))
        undos.append(state.step(branch, 1 - EIGHTH))
    first = state.previous_position(undos[-1], x.dtype)
    written, write = [], state._kernels.write_position
    monkeypatch.setattr(state._kernels, "write_position", lambda *given: written.append(write(*given)))
    found = [first]
    for undo in (undos[2], undos[1]):
        state.undo(undo, branch, 1 - EIGHTH, ahead=True)
        found.append(state.previous_position(undos[0], x.dtype))
    assert all(map(torch.equal, found, reversed(inputs)))
    assert len(written) == passes


def test_packing_reads_a_state_in_pieces() -> None:
    """Beside what is packed there is little: no int32 of x, v and s."""
    elements = 1 << 22
    x = torch.ones(elements, dtype=torch.bfloat16)
    state = joint(x, EIGHTH, 1.0)
    used = mn.measure_memory(state.pack).peak_bytes / elements
    assert used <= state.packed_bytes + 1
