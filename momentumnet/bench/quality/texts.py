"""Texts in memory, character by character, for the benchmarks that train language models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from momentumnet.bench.data.texts import python_topics, read_text

HELD_OUT = 0.1  # the last part of a text is not trained on
OFFLINE = "python-reference"


@dataclass(frozen=True)
class TextData:
    """A text as the numbers of its characters.

    Attributes:
        name: Of the text.
        characters: All that occur, in order; a token is the place in them.
        train: Tokens that are trained on, int64 of shape (N,).
        test: Tokens of the text's end.
        length: Tokens of a window.
    """

    name: str
    characters: str
    train: Tensor
    test: Tensor
    length: int

    @property
    def x_train(self) -> Tensor:
        """The windows of an epoch, as they are without an offset: (count, length)."""
        return self._windows(self.train, self._count)

    @property
    def _count(self) -> int:
        # One less than there are, so that an epoch has as many from any offset.
        return len(self.train) // self.length - 1

    def train_batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of full batches of windows, which are their own targets; order and offset depend on ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        offset = int(torch.randint(self.length, (), generator=generator))
        windows = self._windows(self.train[offset:], self._count)
        order = torch.randperm(len(windows), generator=generator)
        for chosen in order.split(size)[: len(order) // size]:
            yield windows[chosen], windows[chosen]

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The windows that are not trained on, in order."""
        for windows in self._windows(self.test, len(self.test) // self.length).split(size):
            yield windows, windows

    def _windows(self, tokens: Tensor, count: int) -> Tensor:
        return tokens[: count * self.length].view(count, self.length)


def load_text(path: Path | None, *, length: int, most: int | None = None) -> TextData:
    """A text, its last tenth not to be trained on.

    Args:
        path: A UTF-8 file. None for what comes with Python: the pages of its language reference that ``help`` shows,
            in alphabetical order.
        length: Tokens of a window.
        most: Take no more than this many characters, from the beginning.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no text, or too short for a window to be held out and two to be trained on.
    """
    text = python_topics() if path is None else read_text(path)
    text = text[:most]
    characters = "".join(sorted(set(text)))
    places = {character: place for place, character in enumerate(characters)}
    tokens = torch.tensor([places[character] for character in text], dtype=torch.int64)
    held_out = int(HELD_OUT * len(tokens))
    name = OFFLINE if path is None else path.stem
    if held_out < length:
        raise ValueError(
            f"{name} has {len(tokens)} characters, of which the last tenth holds no window of {length}; give "
            f"{int(length / HELD_OUT)} or more, or shorter windows"
        )
    return TextData(name, characters, tokens[:-held_out], tokens[-held_out:], length)
