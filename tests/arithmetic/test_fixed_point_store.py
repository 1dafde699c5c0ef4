"""Multiplying by gamma and the store, against the formula on Python's own integers and fractions."""

from __future__ import annotations

import math
import sys
import threading
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from momentumnet.arithmetic import fixed_point as fp
from tests.arithmetic.by_integers import multiplied, stepped
from tests.arithmetic.strategies import ALL_GAMMAS, exact, gammas, integer_lists, words


class TestStoreSchedule:
    @pytest.mark.parametrize("word", [fp.INT32, fp.INT64], ids=["int32", "int64"])
    def test_nothing_passes_the_word(self, word: fp.Word) -> None:
        for gamma in ALL_GAMMAS:
            n, d = gamma.numerator, gamma.denominator
            schedule, previous = fp.StoreSchedule(gamma, word), None
            for step in range(24):
                digits = schedule[step]
                assert (digits.n, digits.d) == (n, d)
                assert previous is None or digits.previous_bound == previous
                bound = digits.previous_bound
                for _ in range(digits.spills):
                    bound = math.ceil(Fraction(bound, 256))
                assert digits.bound == bound >= 1
                assert digits.next_bound == math.ceil(bound / gamma)
                largest_t = (d - 1) * bound + bound - 1 + digits.offset
                assert 0 <= largest_t < n * digits.next_bound, "the popped digit b has to stay below n"
                assert max(largest_t, digits.next_bound) < 1 << (word.bits - 1)
                if word is fp.INT32 and gamma < 1 and n / (1 - gamma) <= fp.SHORT_STORE_NOISE:
                    assert digits.next_bound <= 1 << fp.SHORT_STORE_BITS
                previous = digits.next_bound

    @pytest.mark.parametrize("word", [fp.INT32, fp.INT64], ids=["int32", "int64"])
    def test_memory_is_at_the_floor(self, word: fp.Word) -> None:
        layers = 400
        for gamma in [
            *ALL_GAMMAS[::20],
            *(Fraction(n, d) for n, d in ((9, 10), (1, 10), (1, 16), (1, 128), (127, 128))),
        ]:
            schedule = fp.StoreSchedule(gamma, word)
            bits = sum(8 * schedule[step].spills for step in range(layers))
            floor = layers * math.log2(1 / gamma)
            assert bits <= 1.25 * floor + 0.03 * layers, gamma
            in_store = math.log2(schedule[layers - 1].next_bound / schedule[0].previous_bound)
            assert bits + in_store >= floor - 1e-6, f"{gamma}: fewer bits than multiplying loses cannot be exact"

    def test_is_the_same_in_every_pass(self) -> None:
        forward, backward = (fp.StoreSchedule(Fraction(5, 7), fp.INT32) for _ in range(2))
        steps = [forward[index] for index in range(100)]
        assert [backward[index] for index in reversed(range(100))] == steps[::-1]
        assert fp.store_schedule(Fraction(5, 7), fp.INT32) is fp.store_schedule(Fraction(10, 14), fp.INT32)

    def test_threads_that_extend_it_at_once_see_one_sequence(self) -> None:
        expected = fp.StoreSchedule(Fraction(5, 7), fp.INT32)
        expected = [expected[index] for index in range(400)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(5):
                schedule, barrier = fp.StoreSchedule(Fraction(5, 7), fp.INT32), threading.Barrier(4)

                def ask(schedule: fp.StoreSchedule = schedule, barrier: threading.Barrier = barrier) -> None:
                    barrier.wait()
                    for index in range(400):
                        schedule[index]

                threads = [threading.Thread(target=ask) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert [schedule[index] for index in range(400)] == expected
        finally:
            sys.setswitchinterval(interval)


@st.composite
def _multiplications(draw: st.DrawFn) -> tuple[fp.Word, Fraction, fp.Digits, list[int], list[int]]:
    word, gamma, size = draw(words), draw(gammas), draw(st.integers(1, 12))
    digits = fp.store_schedule(gamma, word)[draw(st.one_of(st.integers(0, 60), st.integers(0, 1000)))]
    last = digits.previous_bound - 1
    stores = st.one_of(st.sampled_from([0, last, last // 2]), st.integers(0, last))
    return word, gamma, digits, draw(integer_lists(word, size)), draw(st.lists(stores, min_size=size, max_size=size))


class TestMultiply:
    @given(_multiplications())
    @exact(250)
    def test_is_the_formula_and_divide_is_its_inverse(self, case) -> None:
        word, _, digits, v, s = case
        expected = [multiplied(*pair, digits) for pair in zip(v, s, strict=True)]
        after_v, after_s, spilled = fp.multiply(
            torch.tensor(v, dtype=word.dtype), torch.tensor(s, dtype=word.dtype), digits
        )
        assert after_v.tolist() == [item[0] for item in expected]
        assert after_s.tolist() == [item[1] for item in expected]
        assert [byte.tolist() for byte in spilled] == [
            list(byte) for byte in zip(*(item[2] for item in expected), strict=True)
        ]
        assert all(byte.dtype == torch.uint8 for byte in spilled)
        assert all(0 <= value < digits.next_bound for value in after_s.tolist())
        before_v, before_s = fp.divide(after_v, after_s, digits, spilled)
        assert (before_v.tolist(), before_s.tolist()) == (v, s)
        assert before_v.dtype == before_s.dtype == word.dtype

    def test_any_number_of_bytes_can_be_put_aside_at_once(self) -> None:
        digits = fp.Digits(n=2, d=3, spills=3, previous_bound=1 << 30, bound=1 << 6, next_bound=96, offset=0)
        v, s = [-7, 0, 1 << 30], [(1 << 30) - 1, 0x01020304, 5]
        after_v, after_s, spilled = fp.multiply(torch.tensor(v), torch.tensor(s), digits)
        assert [byte.tolist() for byte in spilled] == [[255, 4, 5], [255, 3, 0], [255, 2, 0]]
        assert [part.tolist() for part in fp.divide(after_v, after_s, digits, spilled)] == [v, s]

    @given(_multiplications())
    @exact(150)
    def test_means_gamma_times_the_value_and_its_fraction(self, case) -> None:
        word, gamma, digits, v, s = case
        after_v, after_s, _ = fp.multiply(torch.tensor(v, dtype=word.dtype), torch.tensor(s, dtype=word.dtype), digits)
        # Putting bytes aside moves the fraction by less than 512 parts of the bound.
        spilling = Fraction(512, digits.previous_bound) if digits.spills else 0
        for before, store, after, rest in zip(v, s, after_v.tolist(), after_s.tolist(), strict=True):
            wanted = gamma * (before + Fraction(store, digits.previous_bound))
            error = after + Fraction(rest, digits.next_bound) - wanted
            assert abs(error) <= Fraction(digits.n, 2 * digits.next_bound) + gamma * spilling
            assert abs(error) < Fraction(1, 7)

    @given(st.data(), words, gammas, st.sampled_from([1, 2, 30, 300]))
    @exact(60)
    def test_a_whole_stream_of_wrapping_steps_is_undone(
        self, data, word: fp.Word, gamma: Fraction, layers: int
    ) -> None:
        size = 5
        start = data.draw(integer_lists(word, size)), data.draw(integer_lists(word, size))
        x, v = (torch.tensor(values, dtype=word.dtype) for values in start)
        few = [torch.tensor(data.draw(integer_lists(word, size)), dtype=word.dtype) for _ in range(min(layers, 4))]
        branches = [few[layer % len(few)] for layer in range(layers)]
        schedule, s, passed, spills = fp.store_schedule(gamma, word), torch.zeros_like(x), [], []
        reference = list(zip(*start, [0] * size, strict=True))
        for layer, branch in enumerate(branches):
            passed.append((x.clone(), v.clone(), s.clone()))
            v, s, spilled = fp.multiply(v, s, schedule[layer])
            spills.append(spilled)
            v = v + branch
            x = x + v + fp.carry(s, schedule[layer].next_bound)
            reference = [
                stepped(*state, push, schedule[layer], word)
                for state, push in zip(reference, branch.tolist(), strict=True)
            ]
            assert list(zip(x.tolist(), v.tolist(), s.tolist(), strict=True)) == reference
        for layer in reversed(range(layers)):
            x = x - v - fp.carry(s, schedule[layer].next_bound)
            v, s = fp.divide(v - branches[layer], s, schedule[layer], spills[layer])
            assert all(map(torch.equal, (x, v, s), passed[layer]))
