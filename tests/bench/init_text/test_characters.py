from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from momentumnet.bench.init_text.characters import from_text, load_python_topics, load_text

TEXT = "abcdefghij" * 30 + "jihgfedcba" * 3


def test_next_characters_are_those_of_the_text_and_the_end_is_held_out() -> None:
    data = from_text(TEXT, "letters", "letters.txt")
    assert data.characters == "abcdefghij"
    text = data.train.tolist() + data.validation.tolist()
    assert "".join(data.characters[place] for place in text) == TEXT
    assert len(data.validation) == 33
    tokens, targets = next(data.batches(5, 7, seed=1))
    assert tokens.shape == targets.shape == (5, 7)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    starts = {tuple(row) for row in data.train.unfold(0, 8, 1).tolist()}
    assert all((*a, b[-1]) in starts for a, b in zip(tokens.tolist(), targets.tolist(), strict=True))


def test_batches_depend_on_the_seed_alone_and_reach_both_ends() -> None:
    data = from_text(TEXT, "letters", "letters.txt")
    first, again, other = (list(islice(data.batches(4, 7, seed), 3)) for seed in (1, 1, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    short = from_text("abcdefghij", "short", "short.txt")  # nine to train on: windows of 8 and one more are the whole
    tokens, targets = next(short.batches(3, 8, seed=0))
    assert tokens.tolist() == [list(range(8))] * 3
    assert targets[:, -1].tolist() == [8] * 3


def test_validation_windows_are_the_same_and_spread_from_first_to_last() -> None:
    data = from_text(TEXT, "letters", "letters.txt")
    batches = list(data.validation_batches(3, 6, 4))
    assert [len(tokens) for tokens, _ in batches] == [3, 1]
    assert batches[0][0][0].tolist() == data.validation[:6].tolist()
    assert batches[-1][1][-1].tolist() == data.validation[-6:].tolist()


def test_loss_of_frequencies() -> None:
    data = from_text("aab" * 30 + "bbaaaaaaab", "letters", "letters.txt")
    counts = Counter("aab" * 30)
    share = {letter: (counts[letter] + 1) / (90 + 2) for letter in "ab"}
    # Two windows of which "baaa" and "aaab" are predicted, at the text's beginning and its end.
    expected = -(6 * math.log(share["a"]) + 2 * math.log(share["b"])) / 8
    assert data.frequency_loss(4, 2) == pytest.approx(expected)


def test_short_text_is_refused_with_what_it_lacks() -> None:
    data = from_text("abc" * 10, "short", "short.txt")
    data.check_length(2)
    with pytest.raises(ValueError, match=r"short\.txt: its last tenth, which is for validation, has 3 characters"):
        data.check_length(3)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("né à l'aube", encoding="utf-8")
    assert load_text(path).name == "poem"


def test_text_that_comes_with_python_is_long_enough() -> None:
    data = load_python_topics()
    assert len(data.train) > 200_000
    assert 2 < data.frequency_loss(32, 64) < math.log(len(data.characters))
