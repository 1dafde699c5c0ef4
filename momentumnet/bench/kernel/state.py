"""Bytes that the exact state of a stream takes, as the allocator reports them: in motion, at rest, and put aside."""

from __future__ import annotations

from fractions import Fraction

import torch

from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.bench.reporting.results import Row
from momentumnet.core.scaling.scale import StreamScale
from momentumnet.core.state.coupling import Undo
from momentumnet.core.state.exact_state import ExactState
from momentumnet.memory import measure_memory

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def measure_state(elements: int, gamma: Fraction, dtype: torch.dtype, blocks: int, device: torch.device) -> Row:
    """The bytes of a stream of normally distributed values, behind blocks whose branches are as large.

    Args:
        elements: Size of the stream's tensor.
        gamma: Momentum factor.
        dtype: Of the stream.
        blocks: Steps before it is looked at.
        device: Where.

    Returns:
        Bytes an element between two blocks (``bytes_in_motion``), between forward and backward (``bytes_at_rest``), and
        what all steps together put aside so that they can be undone (``bytes_put_aside``).
    """
    held: list[tuple[ExactState, list[Undo]]] = []
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(elements, generator=generator).to(device, dtype)
    branches = [torch.randn(elements, generator=generator).to(device, dtype) for _ in range(blocks)]

    def move() -> None:
        state = _begin(x, gamma, blocks)
        undos = [state.step(Branch(branch), 1 - gamma) for branch in branches]
        state.position(dtype)
        held.append((state, undos))

    def rest() -> None:
        move()
        held[-1][0].pack()

    # What stays alive of a call is what it holds, if it runs no backward.
    in_motion, at_rest = measure_memory(move).saved_bytes, measure_memory(rest).saved_bytes
    aside = sum(undo.spilled.nbytes for undo in held[0][1] if undo.spilled is not None)
    return {
        "elements": elements,
        "gamma": str(gamma),
        "dtype": str(dtype).removeprefix("torch."),
        "blocks": blocks,
        "bytes_in_motion": (in_motion - aside) / elements,
        "bytes_at_rest": (at_rest - aside) / elements,
        "bytes_put_aside": aside / elements,
    }


def _begin(x: torch.Tensor, gamma: Fraction, blocks: int) -> ExactState:
    """The state of a first pass, which knows nothing of the stream but its first tensor."""
    plan = StreamScale("bench kernel", None, blocks).plan_for(x, gamma)
    bits, word = plan.resolution.bits, plan.resolution.word
    return ExactState(x, None, gamma, plan.exponent, "bench kernel", bits, word=word, careful=plan.careful)
