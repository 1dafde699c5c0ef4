"""The packing kernels on the CPU: the words of the plain operations, and each other's inverse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import momentumnet as mn
from momentumnet.arithmetic import momentum_step, packing
from momentumnet.arithmetic.compiled import libraries, selection, typed_operators
from momentumnet.arithmetic.packing import BLOCK, Field
from momentumnet.arithmetic.planes import Integers, Place, Plane
from tests.arithmetic.compiled.variants import exact, needs_kernels
from tests.arithmetic.fields import any_values, fields, sizes

seeds = st.integers(0, 1 << 30)
GUARD = 77


def guarded(size: int) -> tuple[Tensor, Tensor]:
    """An int32 tensor to be written, and a word behind its end that nothing may write."""
    memory = torch.full((size + 1,), GUARD, dtype=torch.int32)
    return memory[:size], memory[size:]


def check_against_the_reference(field: Field, size: int, seed: int) -> None:
    value = any_values(field, size, seed)
    # Bits above the field are cut off, and may be anything.
    noise = torch.randint(-(1 << 31), 1 << 31, (size,), generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    for given_value in (value, noise):
        expected = packing.pack(given_value, field)
        words, behind = guarded(expected.numel())
        typed_operators.pack(Plane.whole(given_value), words, field)
        assert torch.equal(words, expected)
        found, behind_value = guarded(size)
        typed_operators.unpack(expected, Plane.whole(found), field)
        assert torch.equal(found, packing.unpack(expected, size, field))
        assert behind.item() == behind_value.item() == GUARD
    assert torch.equal(packing.unpack(packing.pack(value, field), size, field), value)


@given(field=fields, size=sizes, seed=seeds)
@exact(300)
def test_words_are_those_of_the_plain_operations(variant: str, field: Field, size: int, seed: int) -> None:
    check_against_the_reference(field, size, seed)


@pytest.mark.parametrize("signed", [False, True])
def test_every_width(variant: str, signed: bool) -> None:
    for width in range(1, 33):
        check_against_the_reference(Field(width, signed), 2 * BLOCK + 33, width)


@needs_kernels
@pytest.mark.usefixtures("_two_threads", "_threads")
@given(field=fields, size=st.sampled_from([70_001, 64 * BLOCK, 33 * BLOCK + 1]), seed=seeds)
@exact(12)
def test_threads_share_whole_blocks(field: Field, size: int, seed: int) -> None:
    check_against_the_reference(field, size, seed)


@needs_kernels
def test_a_state_packed_by_one_is_unpacked_by_the_other() -> None:
    value, field, found = any_values(Field(21, True), 5000, 0), Field(21, True), torch.empty(5000, dtype=torch.int32)
    kernels = selection.for_device(value.device)
    assert kernels is not momentum_step
    for one, other in ((kernels, momentum_step), (momentum_step, kernels)):
        one.unpack(other.pack(Plane.whole(value), field), Plane.whole(found.zero_()), field)
        assert torch.equal(found, value)


@given(size=sizes, seed=seeds)
@exact(60)
def test_planes_of_a_state_are_packed_and_unpacked_where_they_lie(variant: str, size: int, seed: int) -> None:
    """Against the integers of their own, packed; and what is joint with them stays as it is."""
    values = any_values(Field(24, True), size, seed), any_values(Field(24, True), size, seed + 1)
    store = any_values(Field(16, False), size, seed + 2)
    for bits in ((32, 16), (24, 16)):
        ints, empty = (Integers.empty(bits, size, torch.device("cpu")) for _ in range(2))
        ints.write(*values, store)
        empty.write(*(torch.full_like(store, filling) for filling in (-1, 77, 40_000)))
        for index, (value, field) in enumerate(
            zip((*values, store), (Field(24, True), Field(20, True), Field(16, False)), strict=True)
        ):
            expected = packing.pack(value, field)
            words, behind = guarded(expected.numel())
            typed_operators.pack(ints.planes[index], words, field)
            assert torch.equal(words, expected)
            assert torch.equal(momentum_step.pack(ints.planes[index], field), expected)
            assert behind.item() == GUARD
            wanted = list(empty.read())
            wanted[index] = packing.unpack(expected, size, field)
            for unpack in (typed_operators.unpack, momentum_step.unpack):
                found = empty.clone()
                unpack(expected, found.planes[index], field)
                assert all(map(torch.equal, found.read(), wanted))


@needs_kernels
def test_opcheck() -> None:
    x, words = torch.arange(-40, 41, dtype=torch.int32), torch.zeros(3 * 7, dtype=torch.int32)
    torch.library.opcheck(torch.ops.momentumnet.pack.default, (x, None, words, 7, Place.WHOLE))
    torch.library.opcheck(torch.ops.momentumnet.unpack.default, (x, None, words, 7, Place.WHOLE, True))
    torch.library.opcheck(torch.ops.momentumnet.pack.default, (x, x + 1, words, 7, Place.JOINT_V))
    torch.library.opcheck(torch.ops.momentumnet.unpack.default, (x, x + 1, words, 7, Place.JOINT_V, True))


@needs_kernels
@pytest.mark.parametrize(
    ("x", "words", "width", "message"),
    [
        (torch.zeros(33, dtype=torch.int32), torch.zeros(5, dtype=torch.int32), 0, "width must be from 1 to 32, got 0"),
        (torch.zeros(33, dtype=torch.int32), torch.zeros(5, dtype=torch.int32), 33, "width must be from 1 to 32"),
        (torch.zeros(33, dtype=torch.int64), torch.zeros(10, dtype=torch.int64), 5, r"only torch\.int32 is packed"),
        (torch.zeros(33, dtype=torch.int32), torch.zeros(9, dtype=torch.int32), 5, r"words must have shape \(10,\)"),
        (torch.zeros(33, dtype=torch.int32), torch.zeros(10), 5, r"words must be torch\.int32 beside x"),
        (torch.zeros(66, dtype=torch.int32)[::2], torch.zeros(10, dtype=torch.int32), 5, "x must be contiguous"),
    ],
)
def test_errors_say_what_was_expected(x: Tensor, words: Tensor, width: int, message: str) -> None:
    for call in (
        lambda: typed_operators.pack(Plane.whole(x), words, Field(width, False)),
        lambda: typed_operators.unpack(words, Plane.whole(x), Field(width, False)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "cpu", lambda: libraries.Kernels(None, "for a test"))
    with pytest.raises(mn.MomentumNetError, match="no native kernels for cpu tensors: for a test"):
        typed_operators.pack(Plane.whole(torch.zeros(33).int()), torch.zeros(10).int(), Field(5, False))
