"""Example inputs as they are named on the command line: shapes, by position or keyword, or a function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import own_code

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
        *(torch.int64, torch.int32, torch.uint8, torch.bool),
    )
}
MASK = "mask"


@dataclass(frozen=True)
class InputShape:
    """One input of a network.

    Attributes:
        sizes: Its shape, batch dimension included.
        dtype: Its type.
        keyword: Its name; None for the next positional argument.
    """

    sizes: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    keyword: str | None = None

    def random(self, *, batch: int | None = None, below: int = 2) -> Tensor:
        """A tensor of this shape: floats from 0 to 1, integers of at least 0; a mask lets all pass.

        Args:
            batch: Size of the batch dimension, where it is not that of the shape.
            below: Integers are smaller.
        """
        sizes = self.sizes if batch is None else (batch, *self.sizes[1:])
        if self.keyword is not None and MASK in self.keyword:
            return torch.ones(sizes, dtype=self.dtype)
        if self.dtype.is_floating_point:
            return torch.rand(sizes).to(self.dtype)
        return torch.randint(2 if self.dtype == torch.bool else below, sizes).to(self.dtype)

    def __str__(self) -> str:
        dtype = "" if self.dtype == torch.float32 else f":{str(self.dtype).removeprefix('torch.')}"
        return f"{'' if self.keyword is None else self.keyword + '='}{','.join(map(str, self.sizes))}{dtype}"


Given = InputShape | str  # the shape of one input, or module:function for all of them


def described(given: Sequence[Given] | None) -> str:
    """Inputs as they were given, for messages."""
    return " and ".join(map(str, given or ()))


def made(given: Sequence[Given], *, batch: int | None = None, below: int = 2) -> Any:
    """Example inputs: a tuple of positional arguments, or a dict of keyword arguments, or what a function returned.

    Args:
        given: What stands on the command line.
        batch: Size of the batch dimension, where it is not that of the shapes.
        below: Integers are smaller.

    Raises:
        UsageError: They do not go together, or a function cannot be used.
    """
    shapes = [item for item in given if isinstance(item, InputShape)]
    functions = [item for item in given if isinstance(item, str)]
    if functions:
        if len(given) > 1:
            raise UsageError(f"--input {functions[0]} returns all inputs; leave out the other --input")
        if batch is not None:
            raise UsageError(f"--largest-batch tries batch sizes: give --input as shapes instead of {functions[0]}")
        return own_code.inputs_of(functions[0])
    names = [shape.keyword for shape in shapes]
    named = [name for name in names if name is not None]
    if not named:
        return tuple(shape.random(batch=batch, below=below) for shape in shapes)
    if None in names or len(set(named)) < len(named):
        raise UsageError(f"--input {described(given)}: give each input by a keyword of its own, or all by position")
    return {name: shape.random(batch=batch, below=below) for name, shape in zip(named, shapes, strict=True)}
