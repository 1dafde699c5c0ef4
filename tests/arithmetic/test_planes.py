"""The integers of a state in motion: every bit that a layout has comes back, and steps work on them in pieces."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import momentumnet as mn
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled import selection
from momentumnet.arithmetic.fixed_point import INT24, INT32, INT64, Word
from momentumnet.arithmetic.momentum_step import Branch, Move, Scale
from momentumnet.arithmetic.planes import MOST_PIECES, PIECE, Integers, piece_of
from tests.arithmetic.by_integers import stepped
from tests.arithmetic.strategies import exact, gammas, integer_lists, wrap

CPU = torch.device("cpu")
LAYOUTS = {(64, 64): 24, (32, 32): 12, (32, 16): 10, (24, 16): 8}
WORDS = {64: INT64, 32: INT32, 24: INT24}
layouts = st.sampled_from(list(LAYOUTS))


def any_state(bits: tuple[int, int], size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, v and s that fill their bits, the edges among them."""
    generator, word = torch.Generator().manual_seed(seed), WORDS[bits[0]]
    edge = 1 << (bits[0] - 1)
    x, v = (torch.randint(-edge, edge - 1, (size,), generator=generator) for _ in range(2))
    x[: size // 8], v[: size // 9], v[-1:] = -edge, edge - 1, -edge
    s = torch.randint(0, 1 << min(bits[1], 31), (size,), generator=generator)
    s[: size // 7] = (1 << min(bits[1], 31)) - 1
    return x.to(word.dtype), v.to(word.dtype), s.to(word.dtype)


@given(layouts, st.integers(0, 40), st.integers(0, 1 << 20))
@exact(200)
def test_all_bits_come_back_and_leave_the_others_alone(bits: tuple[int, int], size: int, seed: int) -> None:
    state, others = any_state(bits, size, seed), any_state(bits, size, seed + 1)
    ints = Integers.empty(bits, size, CPU)
    ints.write(*state)
    assert all(map(torch.equal, ints.read(), state))
    for index in range(3):
        changed = ints.clone()
        changed.planes[index].write(others[index])
        expected = [*state[:index], others[index], *state[index + 1 :]]
        assert all(map(torch.equal, changed.read(), expected))
    if size:
        for plane, value in zip(ints.planes, state, strict=True):
            assert [int(extreme) for extreme in plane.extremes()] == [int(value.min()), int(value.max())]


@pytest.mark.parametrize(("bits", "size"), LAYOUTS.items())
def test_bytes_an_element(bits: tuple[int, int], size: int) -> None:
    held = mn.measure_memory(lambda: Integers.empty(bits, 100_000, CPU)).peak_bytes
    assert held == size * 100_000


def test_bits_that_no_layout_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(24, 32\)"):
        Integers.empty((24, 32), 3, CPU)


def test_what_passes_the_bits_is_cut_off() -> None:
    ints = Integers.empty((24, 16), 4, CPU)
    values = torch.tensor([1 << 23, -(1 << 23) - 1, (1 << 24) + 5, -1], dtype=torch.int32)
    ints.write(values, values, values & 65535)
    wrapped = [-(1 << 23), (1 << 23) - 1, 5, -1]
    assert ints.x.read().tolist() == ints.v.read().tolist() == wrapped
    assert INT24.wrap_(values.clone()).tolist() == wrapped
    assert INT32.wrap_(values.clone()).tolist() == values.tolist()


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, PIECE * MOST_PIECES + 1, PIECE * MOST_PIECES * 5])
def test_pieces_are_few_and_cover_all(size: int) -> None:
    first = torch.empty(size, dtype=torch.int32, device="meta")
    places = [where for where, _ in Integers(first, first).pieces()]
    assert len(places) <= MOST_PIECES
    assert sum(where.stop - where.start for where in places) == size
    assert all(one.stop == other.start for one, other in itertools.pairwise(places))
    assert sum(plane.size for plane in Integers(first, first).v.pieces()) == size
    assert piece_of(size) % 1024 == 0


@given(st.data(), gammas.filter(fp.has_short_store), st.sampled_from([1, 2, 30, 200]))
@exact(60)
def test_wrapping_steps_of_24_bits_are_those_of_python_and_are_undone(data, gamma: Fraction, layers: int) -> None:
    """Every edge of the word as x, v and branch: two's complement of 24 bits, and the way back, bit for bit."""
    size, most, exponent = 5, INT24.limit, 3
    start = [[wrap(value, INT24) for value in data.draw(integer_lists(INT24, size))] for _ in range(2)]
    few = [
        [max(-most, min(most, value)) for value in data.draw(integer_lists(INT24, size))] for _ in range(min(layers, 4))
    ]
    ints = Integers.empty((24, 16), size, CPU)
    ints.write(*(torch.tensor(values, dtype=torch.int32) for values in start), torch.zeros(size, dtype=torch.int32))
    reference = list(zip(*start, [0] * size, strict=True))
    scale, schedule, passed = Scale(INT24, exponent, 1.0), fp.store_schedule(gamma, INT24), []
    for layer in range(layers):
        push, digits = few[layer % len(few)], schedule[layer]
        move = Move(Branch(torch.tensor(push, dtype=torch.float32)), digits, scale)
        before, position, report = ints.clone(), torch.empty(size), torch.zeros(2, dtype=torch.int32)
        passed.append((before, move, momentum_step.step(ints, move, position, report)))
        reference = [stepped(*state, value, digits, INT24) for state, value in zip(reference, push, strict=True)]
        assert list(zip(*(part.tolist() for part in ints.read()), strict=True)) == reference
        assert position.tolist() == [x / 2**exponent for x, _, _ in reference]
        assert int(report[1]) == int(fp.checksum(*ints.read()))
        if max(map(abs, push)) == most:
            assert not momentum_step.fits(int(report[0]), INT24)
    for before, move, spilled in reversed(passed):
        report = torch.zeros(2, dtype=torch.int32)
        momentum_step.rewind(ints, move.digits.next_bound, scale, None)
        momentum_step.undo(ints, move, spilled, report, ahead=False)
        assert all(map(torch.equal, ints.tensors, before.tensors))
        assert report.tolist() == [0, int(fp.checksum(*before.read()))]


@pytest.mark.parametrize("value", [INT24.limit - 1, INT24.limit, -INT24.limit, -INT24.limit + 1])
@pytest.mark.parametrize("part", ["x", "v", "branch"])
def test_a_magnitude_at_the_limit_of_24_bits_is_reported(part: str, value: int) -> None:
    """Of x, of v and of the branch, by either implementation."""
    # Where v is looked at, x takes it back at once.
    parts = {"x": -value if part == "v" else 0, "v": 0, "branch": 0} | {part: value}
    for kernels in {momentum_step, selection.for_device(CPU)}:
        ints = Integers.empty((24, 16), 3, CPU)
        ints.write(*(torch.tensor([0, number, 0], dtype=torch.int32) for number in (parts["x"], parts["v"], 0)))
        digits = fp.store_schedule(Fraction(1), INT24)[0]
        move = Move(Branch(torch.tensor([0.0, parts["branch"], 0.0])), digits, Scale(INT24, 0, 1.0))
        report = torch.zeros(2, dtype=torch.int32)
        kernels.step(ints, move, torch.empty(3), report)
        # ~value counts for a negative one: -limit has as many bits as limit - 1.
        beyond = abs(value) >= INT24.limit if part == "branch" else value >= INT24.limit or value < -INT24.limit
        assert momentum_step.fits(int(report[0]), INT24) == (not beyond)


def run(kernels: selection.MomentumStep, bits: tuple[int, int], size: int) -> list[torch.Tensor]:
    """All that a few steps and their undoing leave behind."""
    word: Word = WORDS[bits[0]]
    ints, found, undos = Integers.empty(bits, size, CPU), [], []
    x, v, s = any_state(bits, size, 0)
    ints.write(x >> 4, v >> 4, torch.zeros_like(s))
    schedule, scale = fp.store_schedule(Fraction(1, 8), word), Scale(word, 10, 0.875 * 2.0**10)
    seen, y = torch.empty(size, dtype=torch.bfloat16), torch.linspace(-3, 3, size).to(torch.bfloat16)
    kernels.write_position(ints.x, scale, seen)
    for index in range(6):
        position, report = torch.empty(size, dtype=torch.bfloat16), torch.zeros(2, dtype=word.dtype)
        move = Move(Branch(y, seen), schedule[index], scale)
        undos.append((move, kernels.step(ints, move, position, report)))
        seen = position
        found += [*ints.clone().tensors, position, report[1:]]
    for index, (move, spilled) in reversed(list(enumerate(undos))):
        position, report = torch.empty(size, dtype=torch.bfloat16), torch.zeros(2, dtype=word.dtype)
        kernels.rewind(ints, move.digits.next_bound, scale, position)
        kernels.undo(ints, move, spilled, report, ahead=index == 3)
        found += [*ints.clone().tensors, position, report]
        if index == 3:
            momentum_step.advance(ints, move.digits.previous_bound)
        kernels.checksum(ints, report)
        found.append(report)
    return found


@pytest.mark.skipif(not mn.native.available(), reason=f"no native kernels: {mn.native.reason()}")
@pytest.mark.parametrize("bits", [(32, 16), (24, 16), (32, 32)])
def test_pieces_and_kernels_agree_on_a_large_state(bits: tuple[int, int]) -> None:
    """Over the ends of pieces, with the block's x subtracted."""
    size = 2 * PIECE + 77
    expected = run(momentum_step, bits, size)
    assert all(map(torch.equal, run(selection.for_device(CPU), bits, size), expected))


@pytest.mark.parametrize(("bits", "most"), [((24, 16), 4.0), ((32, 16), 4.0)])
def test_a_step_in_plain_pytorch_holds_few_bytes_beside_the_state(bits: tuple[int, int], most: float) -> None:
    """Its temporaries are those of a piece, however large the state is."""
    size, word = 32 * PIECE, WORDS[bits[0]]
    ints = Integers.empty(bits, size, CPU)
    ints.write(*(torch.zeros(size, dtype=torch.int32),) * 3)
    move = Move(Branch(torch.zeros(size)), fp.store_schedule(Fraction(1, 8), word)[0], Scale(word, 10, 1.0))
    position, report = torch.empty(size), torch.zeros(2, dtype=torch.int32)

    def there_and_back() -> None:
        momentum_step.step(ints, move, position, report)
        momentum_step.rewind(ints, move.digits.next_bound, move.scale, position)
        momentum_step.undo(ints, move, None, report, ahead=False)

    assert mn.measure_memory(there_and_back).peak_bytes <= most * size
