"""Integers from floats and back, floor division, rounding and checksum, against Python's own numbers."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.low_bits import join_low_bits, pack_low_bits, split_low_bits, unpack_low_bits
from tests.arithmetic.strategies import (
    exact,
    gammas,
    integer_lists,
    integers,
    laid_out,
    layouts,
    words,
    wrap,
)


class TestExactGamma:
    @pytest.mark.parametrize(
        ("gamma", "ratio"),
        [
            (0.9, (9, 10)),
            (0.125, (1, 8)),
            (0.01, (1, 100)),
            (0.99, (99, 100)),
            (1 / 3, (1, 3)),
            (0, (0, 1)),
            (1.0, (1, 1)),
        ],
    )
    def test_decimals_mean_the_fraction_that_a_person_would_write(self, gamma: float, ratio: tuple[int, int]) -> None:
        assert fp.exact_gamma(gamma) == Fraction(*ratio)

    @given(st.floats(1 / 128, 127 / 128))
    @exact(100)
    def test_no_other_small_fraction_is_nearer(self, gamma: float) -> None:
        ratio, value = fp.exact_gamma(gamma), Fraction(gamma)
        assert 1 <= ratio.denominator <= 128
        nearest = min(abs(Fraction(round(value * d), d) - value) for d in range(1, 129))
        assert abs(ratio - value) == nearest

    @given(gammas)
    @exact(100)
    def test_a_fraction_stays_itself(self, gamma: Fraction) -> None:
        assert fp.exact_gamma(gamma) == gamma == fp.exact_gamma(float(gamma))

    @pytest.mark.parametrize("gamma", [-0.1, 1.0001, float("nan"), float("inf"), 2, Fraction(-1, 8)])
    def test_outside_the_interval_is_refused(self, gamma: float) -> None:
        with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\], got"):
            fp.exact_gamma(gamma)

    @pytest.mark.parametrize(("gamma", "end"), [(0.001, 0), (Fraction(1, 1000), 0), (0.999, 1), (1 - 1e-9, 1)])
    def test_never_rounds_to_no_velocity_or_no_branches(self, gamma: float | Fraction, end: int) -> None:
        with pytest.raises(ValueError, match=rf"nearest to {end} .* use gamma from 1/128 to 127/128"):
            fp.exact_gamma(gamma)

    @pytest.mark.parametrize("gamma", ["0.9", None, True, torch.tensor(0.9), 0.5j])
    def test_no_number_is_refused(self, gamma: object) -> None:
        with pytest.raises(TypeError, match="gamma must be a number"):
            fp.exact_gamma(gamma)  # type: ignore[arg-type]


class TestFloorDivide:
    @given(st.data(), words)
    @exact(150)
    def test_is_pythons(self, data, word: fp.Word) -> None:
        values = data.draw(integer_lists(word, 6))
        divisor = data.draw(
            st.one_of(st.integers(1, 130), st.integers(1, word.store_limit), st.sampled_from([64, 1 << 30]))
        )
        quotient = fp.floor_divide(torch.tensor(values, dtype=word.dtype), divisor)
        assert quotient.dtype == word.dtype
        assert quotient.tolist() == [value // divisor for value in values]

    @pytest.mark.parametrize("divisor", [1, 8, 10])
    def test_leaves_its_argument_alone(self, divisor: int) -> None:
        value = torch.tensor([-25, 25], dtype=torch.int32)
        fp.floor_divide(value, divisor).zero_()
        assert value.tolist() == [-25, 25]


@given(st.data(), words)
@exact(200)
def test_carry_rounds_the_fraction(data, word: fp.Word) -> None:
    bound = data.draw(st.one_of(st.integers(1, 5), st.integers(1, word.store_limit)))
    edges = st.sampled_from([0, bound - 1, bound // 2, max(0, bound // 2 - 1), (bound - 1) // 2])
    stores = data.draw(st.lists(st.one_of(edges, st.integers(0, bound - 1)), min_size=1, max_size=8))
    assert fp.carry(torch.tensor(stores, dtype=word.dtype), bound).tolist() == [int(2 * s >= bound) for s in stores]


class TestToFixed:
    @given(
        st.lists(st.floats(width=32), min_size=1, max_size=8),
        st.integers(0, 40),
        st.sampled_from(["f32", "bf16", "f16", "f64"]),
    )
    @exact(250)
    @example([math.nan, math.inf, -math.inf, 0.5, 1.5, -0.5, -2.5, -0.0], 0, "f32")
    @example([2.0**30, -(2.0**30), 2.0**30 - 64, 3e38, -3e38], 0, "f32")
    def test_rounds_half_to_even_saturates_and_drops_nan(self, values: list[float], exponent: int, kind: str) -> None:
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}[kind]
        tensor = torch.tensor(values, dtype=dtype)
        word = fp.word_for(dtype)
        assert word == (fp.INT64 if kind == "f64" else fp.INT32)
        fixed = fp.to_fixed(tensor, 2.0**exponent, word)
        assert fixed.dtype == word.dtype
        assert fixed.tolist() == [_fixed(value, exponent, word) for value in tensor.double().tolist()]

    @given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8), gammas, words)
    @exact(200)
    def test_any_factor_is_as_exact_as_the_float(self, values: list[float], gamma: Fraction, word: fp.Word) -> None:
        factor = math.ldexp(float(gamma), 14)
        fixed = fp.to_fixed(torch.tensor(values, dtype=word.compute_dtype), factor, word)
        for value, got in zip(values, fixed.tolist(), strict=True):
            wanted = Fraction(value) * gamma * 2**14
            assert abs(got - wanted) <= Fraction(1, 2) + abs(wanted) * Fraction(1, 2**23)

    def test_leaves_its_argument_alone(self) -> None:
        value = torch.tensor([0.3, math.nan, 1e30], dtype=torch.float32)
        fp.to_fixed(value, 1.0, fp.INT32)
        assert value[0] == 0.3
        assert value[1].isnan()
        assert value[2] == 1e30


def _fixed(value: float, exponent: int, word: fp.Word) -> int:
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return int(math.copysign(word.limit, value))
    return max(-word.limit, min(word.limit, round(Fraction(value) * 2**exponent)))


class TestToFloat:
    @given(st.data(), words, st.integers(-3, 60))
    @exact(200)
    def test_is_the_nearest_float(self, data, word: fp.Word, exponent: int) -> None:
        values = data.draw(integer_lists(word, 6))
        got = fp.to_float(torch.tensor(values, dtype=word.dtype), exponent, word, word.compute_dtype)
        code = "f" if word == fp.INT32 else "d"
        nearest = [struct.unpack(code, struct.pack(code, float(value)))[0] for value in values]
        assert got.tolist() == [math.ldexp(value, -exponent) for value in nearest]

    @pytest.mark.parametrize("word", [fp.INT32, fp.INT64], ids=["int32", "int64"])
    def test_the_finest_scale_still_carries(self, word: fp.Word) -> None:
        finest = word.max_exponent
        value = torch.tensor([1, -3, 1 << 20], dtype=word.dtype)
        back = fp.to_float(value, finest, word, word.compute_dtype)
        assert torch.equal(fp.to_fixed(back, math.ldexp(1.0, finest), word), value)
        assert torch.tensor(math.ldexp(1.0, finest), dtype=word.compute_dtype).isfinite()
        assert math.ldexp(1.0, -finest) >= torch.finfo(word.compute_dtype).tiny


class TestLowBits:
    @given(st.data(), words)
    @exact(250)
    def test_split_rounds_to_nearest_and_join_undoes_it(self, data, word: fp.Word) -> None:
        values, bits = data.draw(integer_lists(word, 8)), data.draw(st.integers(1, word.bits + 40))
        tensor = torch.tensor(values, dtype=word.dtype)
        high, low = split_low_bits(tensor, bits)
        assert join_low_bits(high, low, bits).tolist() == values == tensor.tolist()
        for value, rounded in zip(values, high.tolist(), strict=True):
            if abs(value) < word.limit:
                assert rounded == round(Fraction(value, 1 << bits))

    @pytest.mark.parametrize("word", [fp.INT32, fp.INT64], ids=["int32", "int64"])
    def test_every_tie_of_every_width_comes_back(self, word: fp.Word) -> None:
        for bits in range(1, word.bits - 2):
            half = 1 << (bits - 1)
            values = [tie + near for tie in (-3 * half, -half, half, 3 * half) for near in (-1, 0, 1)]
            values = [wrap(value, word) for value in values]
            high, low = split_low_bits(torch.tensor(values, dtype=word.dtype), bits)
            assert join_low_bits(high, low, bits).tolist() == values
            if 3 * half < word.limit:
                assert high.tolist() == [round(Fraction(value, 1 << bits)) for value in values]

    @pytest.mark.parametrize(("bits", "size"), [(1, 1), (7, 1), (8, 2), (15, 2), (16, 4), (31, 4), (32, 8), (70, 8)])
    def test_low_bits_take_the_smallest_type(self, bits: int, size: int) -> None:
        assert split_low_bits(torch.arange(4, dtype=torch.int64), bits)[1].element_size() == size

    def test_what_is_put_aside_is_a_copy(self) -> None:
        for bits in (4, 40):
            value = torch.tensor([1000, -1000], dtype=torch.int32)
            high, low = split_low_bits(value, bits)
            value.zero_()
            joined = join_low_bits(high, low, bits)
            assert joined.tolist() == [1000, -1000]
            joined.zero_()
            assert join_low_bits(high, low, bits).tolist() == [1000, -1000]


class TestChecksum:
    @given(st.data(), words)
    @exact(100)
    def test_is_the_documented_sum(self, data, word: fp.Word) -> None:
        size = data.draw(st.integers(0, 6))
        state = [data.draw(integer_lists(word, size)) for _ in range(3)]
        total = sum(_mix(*element, i, word.bits) for i, element in enumerate(zip(*state, strict=True)))
        assert int(fp.checksum(*(torch.tensor(part, dtype=word.dtype) for part in state))) == wrap(total, word)

    @given(st.data(), words, st.sampled_from([0, 1, 2]))
    @exact(150)
    def test_sees_every_change_of_one_number(self, data, word: fp.Word, part: int) -> None:
        size = data.draw(st.integers(1, 6))
        state = [torch.tensor(data.draw(integer_lists(word, size)), dtype=word.dtype) for _ in range(3)]
        before, index = fp.checksum(*state), data.draw(st.integers(0, size - 1))
        changed = data.draw(integers(word))
        assume(changed != int(state[part][index]))
        state[part][index] = changed
        assert fp.checksum(*state) != before

    @given(st.data(), words, st.sampled_from([(0,), (1,), (2,), (0, 1, 2)]))
    @exact(150)
    def test_sees_two_elements_change_places(self, data, word: fp.Word, parts: tuple[int, ...]) -> None:
        state = [torch.tensor(data.draw(integer_lists(word, 6)), dtype=word.dtype) for _ in range(3)]
        before = fp.checksum(*state)
        first, second = data.draw(st.permutations(range(6)))[:2]
        assume(any(state[part][first] != state[part][second] for part in parts))
        for part in parts:
            state[part][[first, second]] = state[part][[second, first]]
        assert fp.checksum(*state) != before

    @pytest.mark.parametrize("error", [1, 2, 256, 40503])
    @pytest.mark.parametrize("part", [0, 1, 2], ids=["x", "v", "s"])
    @pytest.mark.parametrize("word", [fp.INT32, fp.INT64], ids=["int32", "int64"])
    def test_sees_errors_that_compensate(self, word: fp.Word, part: int, error: int) -> None:
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            state = list(torch.randint(-(1 << 28), 1 << 28, (3, 4), generator=generator).to(word.dtype))
            before = fp.checksum(*state)
            state[part][0] += error
            state[part][1] -= error
            assert fp.checksum(*state) != before

    @given(st.data(), layouts)
    @exact(30)
    def test_does_not_depend_on_the_memory_layout(self, data, layout: str) -> None:
        state = [
            torch.tensor(data.draw(integer_lists(fp.INT32, 12)), dtype=torch.int32).view(2, 3, 2) for _ in range(3)
        ]
        assert fp.checksum(*(laid_out(part, layout) for part in state)) == fp.checksum(*state)


def _mix(x: int, v: int, s: int, position: int, bits: int) -> int:
    modulus, shift = 1 << bits, bits // 2 - 1
    mixed = (x * 0x27D4EB2F + v * 0x165667B1 + s + position * 0x1E3779B1) % modulus
    mixed ^= mixed >> shift
    mixed = mixed * 0x2C1B3C6D % modulus
    return mixed ^ mixed >> shift


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7])
def test_packed_low_bits_come_back(bits: int) -> None:
    half = 1 << (bits - 1)
    values = torch.arange(-half, half + 1, dtype=torch.int8)
    first, second = (grid.flatten() for grid in torch.meshgrid(values, values, indexing="ij"))
    packed = pack_low_bits(first, second, bits)
    assert sum(part.numel() * part.element_size() for part in packed) == first.numel() * (1 if bits <= 3 else 2)
    unpacked = unpack_low_bits(packed, bits)
    assert unpacked[0].tolist() == first.tolist()
    assert unpacked[1].tolist() == second.tolist()
