"""Texts as windows of bytes, for the benchmarks that train language models epoch by epoch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY = 256
HELD_OUT = 10  # every tenth window


@dataclass(frozen=True)
class ByteWindows:
    """Windows of bytes, uint8 of shape (N, length), which do not overlap; their targets are the bytes themselves."""

    name: str
    x_train: Tensor
    x_validation: Tensor

    @property
    def digest(self) -> str:
        """What tells this data from other data of its name."""
        content = torch.cat([self.x_train, self.x_validation]).numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def part(self, *, train: int | None, validation: int | None) -> ByteWindows:
        """As many of the windows, drawn by chance but always the same ones; None for all."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(self.x_train), generator=generator)[:train]
        held_out = torch.randperm(len(self.x_validation), generator=generator)[:validation]
        return dataclasses.replace(self, x_train=self.x_train[chosen], x_validation=self.x_validation[held_out])

    def train_batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of full batches in the order of ``seed``, as integers (size, length), twice."""
        order = torch.randperm(len(self.x_train), generator=torch.Generator().manual_seed(seed))
        for chosen in order.split(size)[: len(order) // size]:
            tokens = self.x_train[chosen].long()
            yield tokens, tokens

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The windows that are held out, in order."""
        for part in self.x_validation.split(size):
            yield part.long(), part.long()


def windows(name: str, text: bytes, length: int) -> ByteWindows:
    """A text cut into windows of ``length`` bytes, every tenth of them held out.

    Raises:
        ValueError: The text is shorter than ten windows.
    """
    count = len(text) // length
    if count < HELD_OUT:
        raise ValueError(f"{name} has {len(text)} bytes, less than {HELD_OUT} windows of {length}")
    tokens = torch.frombuffer(bytearray(text[: count * length]), dtype=torch.uint8).view(count, length)
    held_out = torch.arange(count) % HELD_OUT == 0
    return ByteWindows(name, tokens[~held_out], tokens[held_out])
