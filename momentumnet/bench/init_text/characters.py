"""Text in memory as characters, for the benchmarks of trainings: a file of one's own, or Python's documentation."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from momentumnet.bench.data.texts import python_topics, read_text

HELD_OUT = 10  # one part in so many, at the text's end


@dataclass(frozen=True)
class TextData:
    """A text as places in its alphabet.

    Attributes:
        name: What results are called after.
        source: Where it is from, for the results.
        digest: First digits of its SHA-256.
        characters: The alphabet, sorted.
        train: int64 of shape (N,).
        validation: The text's end, int64 of shape (M,).
    """

    name: str
    source: str
    digest: str
    characters: str
    train: Tensor
    validation: Tensor

    def batches(self, size: int, length: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless ``(tokens, next tokens)``, both (size, length), from places in the training text by ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield _windows(self.train, torch.randint(len(self.train) - length, (size,), generator=generator), length)

    def validation_batches(self, size: int, length: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same ``count`` windows of the text's end each time, evenly spread, in batches of at most ``size``."""
        starts = torch.linspace(0, len(self.validation) - length - 1, count).long()
        for part in starts.split(size):
            yield _windows(self.validation, part, length)

    def frequency_loss(self, length: int, count: int) -> float:
        """Mean cross entropy, on the windows of validation, for who knows the frequencies of characters alone.

        Frequencies are those of the training text, each character counted once more (Laplace), so that none is zero.
        """
        counts = torch.bincount(self.train, minlength=len(self.characters)).double() + 1
        (windows,) = self.validation_batches(count, length, count)
        return float(-(counts / counts.sum()).log()[windows[1]].mean())

    def check_length(self, length: int) -> None:
        """Raises ValueError unless both parts hold a window of ``length`` characters and the next one."""
        least = min(len(self.train), len(self.validation))
        if least <= length:
            raise ValueError(
                f"{self.source}: its last tenth, which is for validation, has {least} characters, and a sequence of "
                f"{length} takes one more than that; give a longer text or a smaller length"
            )


def _windows(text: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    windows = text[starts[:, None] + torch.arange(length + 1)]
    return windows[:, :-1], windows[:, 1:]


def load_python_topics() -> TextData:
    """The language reference that comes with Python for ``help()``: some 465,000 characters, other ones by version.

    Raises:
        OSError: This installation of Python has it not.
    """
    return from_text(python_topics(), "python-topics", f"the text of help() of Python {platform.python_version()}")


def load_text(path: Path) -> TextData:
    """A file in UTF-8.

    Raises:
        ValueError: It is not in UTF-8.
        OSError: It cannot be read.
    """
    return from_text(read_text(path), path.stem, path.name)


def from_text(text: str, name: str, source: str) -> TextData:
    """The text, its last tenth for validation."""
    characters = "".join(sorted(set(text)))
    places = {character: place for place, character in enumerate(characters)}
    tokens = torch.tensor([places[character] for character in text], dtype=torch.int64)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    end = len(tokens) - len(tokens) // HELD_OUT
    return TextData(name, source, digest, characters, tokens[:end], tokens[end:])
