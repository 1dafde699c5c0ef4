"""What the state of a stream costs: its steps measured, by themselves, or assumed where there are no values."""

from __future__ import annotations

from fractions import Fraction

import torch

from momentumnet.arithmetic.compiled import libraries
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.arithmetic.state_bytes import moving_bytes
from momentumnet.core.scaling.resolution import Resolution, resolution_for
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.rest import output_piece
from momentumnet.planner.measuring.hollow import BYTES_A_SECOND
from momentumnet.planner.measuring.unit_cost import now
from momentumnet.planner.profiles.stream_profile import StreamProfile
from momentumnet.streams.blocks.block import ResidualStream


def stream_profile(
    stream: ResidualStream, gamma: Fraction, arithmetic: str, device: torch.device, *, hollow: bool
) -> StreamProfile:
    """Its bytes by kind, and the time of its steps, measured or (``hollow``) assumed."""
    elements, together = stream.elements, bool(stream.companions)
    if not gamma or arithmetic == "float":
        return StreamProfile(stream.path, elements, stream.dtype, gamma, None, 0, 0.0, together=together)
    found = resolution_for(stream.dtype, len(stream), gamma, stream.spread)
    if hollow:
        step = undo = 2 * elements * moving_bytes(gamma, found.word) / BYTES_A_SECOND
    else:
        step, undo = _state_seconds(stream, gamma, found, device)
    return StreamProfile(
        stream.path,
        elements,
        stream.dtype,
        gamma,
        found.word,
        found.bits,
        undo,
        stream.spread,
        step_seconds=step,
        together=together,
        piece=output_piece(elements, device),
        native=hollow or libraries.of(device).library is not None,
    )


def _state_seconds(
    stream: ResidualStream, gamma: Fraction, found: Resolution, device: torch.device
) -> tuple[float, float]:
    """Time of a step of a state of this size, and of taking it back."""
    x = torch.zeros(stream.elements, dtype=stream.dtype, device=device)
    steps, undos = [], []
    with torch.no_grad():
        state = ExactState(x, None, gamma, 10, "planned", found.bits, word=found.word, careful=False)
        for _ in range(3):
            start = now(device)
            undo = state.step(Branch(x, x), 1 - gamma)
            middle = now(device)
            state.previous_position(undo, x.dtype)
            state.undo(undo, Branch(x, x), 1 - gamma)
            steps.append(middle - start)
            undos.append(now(device) - middle)
    return min(steps), min(undos)
