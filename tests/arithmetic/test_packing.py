"""Integers in fewer bits: every value comes back, in the bits that its range needs, laid out as documented."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from momentumnet.arithmetic import momentum_step, packing
from momentumnet.arithmetic.packing import BLOCK, COLUMNS, ROWS, Field, as_it_is, at_rest
from momentumnet.arithmetic.planes import Plane
from tests.arithmetic.fields import any_values, fields, limits, sizes
from tests.arithmetic.strategies import exact


@given(fields, sizes, st.integers(0, 1 << 30))
@exact(400)
def test_every_value_of_a_field_comes_back(field: Field, size: int, seed: int) -> None:
    value = any_values(field, size, seed)
    words = packing.pack(value.clone(), field)
    assert words.dtype == torch.int32
    assert words.numel() == packing.words_for(size, field.width) == -(-size // 32) * field.width
    found = packing.unpack(words, size, field)
    assert found.dtype == torch.int32
    assert torch.equal(found, value)


@given(fields, sizes, st.integers(0, 1 << 30))
@exact(60)
def test_each_field_lies_where_it_is_documented(field: Field, size: int, seed: int) -> None:
    value = any_values(field, size, seed)
    words = [word % (1 << 32) for word in packing.pack(value, field).tolist()]
    for i, number in enumerate(value.tolist()):
        block, place = divmod(i, BLOCK)
        columns = COLUMNS if (block + 1) * BLOCK <= size else -(-(size % BLOCK) // ROWS)
        row, column = divmod(place, columns)
        first = block * COLUMNS * field.width + column
        bits = sum(words[first + k * columns] << (32 * k) for k in range(field.width))
        assert bits >> (row * field.width) & ((1 << field.width) - 1) == number % (1 << field.width)


def test_bits_above_a_field_do_not_reach_its_neighbours() -> None:
    value = torch.full((BLOCK + 5,), -1, dtype=torch.int32)
    value[::2] = 0
    found = packing.unpack(packing.pack(value, Field(3, False)), BLOCK + 5, Field(3, False))
    assert torch.equal(found, value & 7)


@given(st.integers(-(1 << 31), (1 << 31) - 1), st.integers(-(1 << 31), (1 << 31) - 1))
@exact(200)
def test_a_range_takes_the_narrowest_field(one: int, other: int) -> None:
    smallest, largest = sorted((one, other))
    field = Field.of(smallest, largest)
    low, high = limits(field)
    assert low <= smallest
    assert largest <= high
    assert field.signed == (smallest < 0)
    if field.width > 1:
        low, high = limits(Field(field.width - 1, field.signed))
        assert smallest < low or largest > high


@pytest.mark.parametrize(
    ("low", "high", "width"),
    [(0, 0, 1), (0, 1, 1), (-1, 0, 1), (-2, 1, 2), (-128, 127, 8), (0, 255, 8), (-129, 0, 9), (-5, -5, 4), (0, 256, 9)],
)
def test_widths_at_the_edges(low: int, high: int, width: int) -> None:
    assert Field.of(low, high).width == width


@pytest.mark.parametrize("widths", [(25, 24, 6), (21, 20, 13), (29, 27, 9), (21, 20, 6)])
def test_a_state_takes_the_bits_of_its_fields(widths: tuple[int, int, int]) -> None:
    size = 10 * BLOCK
    parts = []
    for field in (Field(widths[0], True), Field(widths[1], True), Field(widths[2], False)):
        low, high = limits(field)
        parts.append(at_rest(Plane.whole(torch.full((size,), high, dtype=torch.int32)), low, high, momentum_step))
    assert sum(part.bytes_per_element for part in parts) == sum(widths) / 8
    assert sum(part.words.nbytes for part in parts) == size * sum(widths) // 8


def test_what_would_not_be_smaller_stays_as_it_is() -> None:
    for value, low, high in [
        (torch.tensor([1, -2]), -2, 1),
        (torch.zeros(BLOCK, dtype=torch.int32), -(1 << 31), 0),
        (torch.zeros(20, dtype=torch.int32), 0, 1 << 20),
        (torch.zeros(0, dtype=torch.int32), 0, 0),
    ]:
        found = at_rest(Plane.whole(value), low, high, momentum_step)
        assert found.unpacked(momentum_step) is value
        assert found.bytes_per_element == value.element_size()
    assert at_rest(Plane.whole(torch.zeros(22).int()), 0, 1 << 20, momentum_step).bytes_per_element == 21 / 8


@given(
    st.sampled_from([1, BLOCK - 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 1, 5 * BLOCK + 999]), st.integers(1, 32), st.booleans()
)
@exact(40)
def test_pieces_are_read_on_their_own(size: int, width: int, keep: bool) -> None:
    field = Field(width, True)
    low, high = limits(field)
    value = any_values(field, size, width)
    whole = as_it_is(Plane.whole(value)) if keep else at_rest(Plane.whole(value), low, high, momentum_step)
    pieces = whole.split(2 * BLOCK)
    assert [piece.size for piece in pieces] == [len(piece) for piece in value.split(2 * BLOCK)]
    assert torch.equal(torch.cat([piece.unpacked(momentum_step) for piece in pieces]), value)


def test_pieces_are_whole_blocks() -> None:
    value = torch.zeros(4 * BLOCK, dtype=torch.int32)
    with pytest.raises(ValueError, match="multiples of 1024, got 1000"):
        at_rest(Plane.whole(value), 0, 1, momentum_step).split(1000)
