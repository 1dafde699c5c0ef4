"""What a residual stream is: the blocks that pass one tensor along, and what the trace measured of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from momentumnet.core.tensors.packed import Companion


@dataclass(frozen=True)
class ResidualStream:
    """A run of two or more residual blocks, each of which takes the output of the one before.

    Attributes:
        path: Longest common parent module path of the blocks, ``""`` for the root.
        blocks: Dotted module names in call order; a module that is called four times stands four times.
        arguments: For each of them the position or keyword in which it takes the stream tensor.
        kind: How the block's input reaches its output: ``"additive"`` (``x + f(x)``), ``"additive-scaled"``,
            ``"additive-rearranged"``, ``"postact"`` (an activation or a norm after the sum), ``"gated"`` or
            ``"concat"``; several words are joined by ``+``.
        shape: Shape of the stream tensor in the trace.
        dtype: Its dtype.
        magnitude: Largest finite absolute value among the stream tensors (inputs and outputs of the blocks); 0 where
            they have no values (on the meta device, or fake).
        start_magnitude: The same of what enters the first block.
        spread: The largest of these over a typical one (the median), in the block where that is most.
        saved_bytes: Bytes that autograd keeps for the blocks in the trace: unique storages, parameters and
            buffers excluded.
        companions: Further tensors that the blocks hand on beside the stream's, each with a skip of its own, as image
            and text of double-stream blocks; they are carried with it, as one state.
        left: Why other tensors that they hand on are not carried.
        untrained: Whether nothing in them or in front of them is trained, so that a training step keeps nothing of it.

    Example:
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        >>> [stream] = mn.find_streams(model, torch.randn(2, 5, 16))
        >>> stream.blocks, stream.shape
        (('layers.0', 'layers.1', 'layers.2'), (2, 5, 16))
    """

    path: str
    blocks: tuple[str, ...]
    arguments: tuple[int | str, ...]
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    magnitude: float
    start_magnitude: float
    spread: float
    saved_bytes: int
    companions: tuple[Companion, ...] = ()
    left: tuple[str, ...] = ()
    untrained: bool = False

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of all tensors that it carries, the stream's first."""
        return (self.shape, *(companion.shape for companion in self.companions))

    @property
    def elements(self) -> int:
        """Of all tensors that it carries."""
        return sum(map(prod, self.shapes))


def scale_of(magnitude: float, start: float, spread: float) -> dict[str, float | None]:
    """What a trace has measured of a stream's values, as `MomentumStream` takes it; None for what it has to learn.

    Magnitudes are 0 where the trace had no values.
    """
    return {"magnitude": magnitude or None, "start": start or None, "spread": spread if magnitude else None}
