"""The steps of a pass, and the position between them: undone one by one by recomputing branches, and made again."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.checks import audit
from momentumnet.core.checks.audit import Fingerprint
from momentumnet.core.rewind.steps import TapeStep
from momentumnet.core.state.coupling import State
from momentumnet.errors import ReconstructionError


class Rewindable:
    """A state, the steps made so far, and the position between them.

    ``position`` n means: n steps are applied, the state is the input of block n. Backward rewinds it; a second
    backward through a retained graph plays it forward again. Positions below ``floor`` need no gradient and cannot be
    reached any more; the state does not move past the ``frontier``.

    Args:
        name: the stream's name, for errors.
        state: at the start.
    """

    def __init__(self, name: str, state: State) -> None:
        self.name, self.state = name, state
        self.frontier = math.inf
        self.position = 0
        self.floor = 0
        self.length = 0
        self.steps: list[TapeStep | None] = []
        self.lock = threading.RLock()
        self._is_moving = False

    def play_to_end(self) -> None:
        """Go to the end again, where a gradient taken during forward has rewound the tape."""
        if self.position == self.length and not self._is_moving:
            return
        with self.lock, torch.no_grad():
            self._check_whole()
            while self.position < min(self.length, self.frontier):
                self._redo()

    def input_of(self, index: int) -> Tensor:
        """Move so that block ``index`` can be recomputed, and return its input x, bit for bit."""
        while self.position > index + 1:
            self._undo_with(self._branch_of_last())
        while self.position < min(index + 1, self.frontier):
            self._redo()
        step = self._step(index)
        if self.position == index:
            return self.state.position(step.call.dtype)
        return self._previous_position(step)

    def _previous_position(self, step: TapeStep) -> Tensor:
        if step.undo is None:
            raise _not_applied(step)
        return self.state.previous_position(step.undo, step.call.dtype)

    def _branch_of_last(self) -> Branch:
        step = self._step(self.position - 1)
        x = self._previous_position(step)
        return step.branch_of(step.again(x), x)

    def _undo_with(self, branch: Branch) -> None:
        step = self._step(self.position - 1)
        undo, step.undo = step.undo, None
        if undo is None:
            raise _not_applied(step)
        self._is_moving = True
        self.state.undo(undo, branch, step.weight, ahead=self.position - 1 > self.floor)
        self.position -= 1
        self._is_moving = False
        self._check(step, step.fingerprint)

    def _redo(self) -> None:
        step = self._step(self.position)
        x = self.state.position(step.call.dtype)
        branch = step.branch_of(step.again(x), x)
        self._is_moving = True
        step.made(self.state.step(branch, step.weight, step.exponent), self.state.exponent)
        self.position += 1
        self._is_moving = False
        following = self.steps[self.position] if self.position < len(self.steps) else None
        if following is not None:
            self._check(step, following.fingerprint)

    def _check_whole(self) -> None:
        """Refuse a state that stands between two positions: a key was pressed, or memory was short, while it moved."""
        if self._is_moving:
            raise ReconstructionError(
                f"stream {self.name!r}: an earlier backward through this graph was interrupted while the stream's "
                "state was taken a step back, so that its activations are lost; run forward again"
            )

    def _step(self, index: int) -> TapeStep:
        step = self.steps[index]
        if step is None:
            raise ReconstructionError(
                f"stream {self.name!r}: block {index} was recorded without gradients, so its input cannot be rewound"
            )
        return step

    def _check(self, step: TapeStep, fingerprint: Fingerprint) -> None:
        audit.compare(audit.Comparison(fingerprint, self.state.fingerprint(), step.failures.state))


def _not_applied(step: TapeStep) -> ReconstructionError:
    return ReconstructionError(f"block {step.call.name!r}: its step is not applied; please report this")
