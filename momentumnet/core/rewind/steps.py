"""The steps of a tape: what is done once, and what is kept so that it can be made again and undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

from momentumnet.arithmetic.fingerprint import fingerprint, joint_norm
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.core.checks.audit import Fingerprint
from momentumnet.core.rewind.early_end import EarlyEnd, again_until
from momentumnet.core.rewind.failures import Failures, compare
from momentumnet.core.state.coupling import Undo
from momentumnet.recompute.replay import BlockCall
from momentumnet.recompute.saved.collected_tensors import without_saved_tensors
from momentumnet.recompute.saved.saved_tensors import SavedTensors
from momentumnet.recompute.saved.saved_values import SavedValues

if TYPE_CHECKING:
    from momentumnet.core.rewind.tape import Tape


@dataclass
class TapeStep:
    """One step as it was made: enough to make it again, and to undo it."""

    call: BlockCall
    stream: str
    weight: Fraction
    branch_of: Callable[[object, Tensor], Branch]
    fingerprint: Fingerprint  # of the state before the step
    values: SavedValues  # of what its block saved for backward
    strides: tuple[int, ...] | None = None  # of the x that its block was given; None of a nested tensor
    whole: bool = False  # whether the stream tensor is compared, too: no state is rewound that would tell
    beside: list[Tensor] = field(default_factory=list)  # fingerprints of what the block returned beside the stream
    end: EarlyEnd | None = None  # where recomputes may be left as soon as all is saved, if nobody is given their output
    undo: Undo | None = None  # None while the step is not applied
    exponent: int | None = None  # the scale behind the step: what it takes when it is made again

    @property
    def failures(self) -> Failures:
        """Its errors."""
        return Failures(self.call.suspects, self.stream, self.values.exact)

    def made(self, undo: Undo, exponent: int) -> None:
        """The step has been applied."""
        self.undo, self.exponent = undo, exponent

    def first_run_ends(self, output: Any) -> None:
        """The block has returned ``output`` for the first time: what recomputes have to return and save, too.

        A ``whole`` one is recomputed for its saved tensors alone.
        """
        if self.end is not None:
            self.end.first_run_ends(self.call, self.values)
        self.values.close(last_whole=self._ends_early)
        self.beside = [] if self._ends_early else self._fingerprints(output)

    def again(self, x: Tensor) -> Any:
        """What the block returns when it is called again on ``x``; without its saved tensors.

        Raises:
            ReconstructionError: the block raised an exception.
        """
        failures = self.failures
        with failures.explained(), without_saved_tensors(self.call.name):
            output = self.call.again(x)
        self._compare(output, failures)
        return output

    def again_for(self, saved: SavedTensors, x: Tensor) -> tuple[Any, Callable[[], None]]:
        """The same, and what hands what it saves over to ``saved``; None for an output that it did not reach."""
        failures = self.failures
        output, collected = again_until(self.call, x, failures, self.end, self.values.given)
        if not self._ends_early:
            self._compare(output, failures)

        def fill() -> None:
            reports = saved.fill(collected, failures.differ)
            collected.let_go()
            compare(self.values.reports, reports, failures.saved_values, exact=self.values.exact)

        return output, fill

    @property
    def _ends_early(self) -> bool:
        return self.end is not None and self.end.allowed

    def _compare(self, output: Any, failures: Failures) -> None:
        """Have what stands beside the stream compared with that of the first run; with ``whole`` the stream, too."""
        error = failures.output if self.whole else failures.side_output
        compare(self.beside, self._fingerprints(output), error, exact=self.values.exact)

    def _fingerprints(self, output: Any) -> list[Tensor]:
        beside = tensors_beside(output)
        if self.whole:
            beside = [pytree.tree_leaves(output)[0], *beside]
        if not beside:
            return []
        if self.values.exact:
            return fingerprint(beside)
        return joint_norm([tensor.detach().reshape(-1) for tensor in beside])


def tensors_beside(output: Any) -> list[Tensor]:
    """What a block returns beside the stream and a gradient may reach: each tensor once, unless it is the stream's."""
    if isinstance(output, Tensor):
        return []
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return list({id(leaf): leaf for leaf in leaves[1:] if leaf is not leaves[0] and leaf.requires_grad}.values())


@dataclass(frozen=True)
class StepMove:
    """What one step does to the tape.

    Attributes:
        tape: the tape.
        step: how it is made again; None where nothing is to be rewound.
        weight: of the branch.
        branch_is_output: whether the block returned the branch itself.
        place: of the block in the stream.
        coarsest: the scale that earlier passes had to take there, if any.
    """

    tape: Tape
    step: TapeStep | None
    weight: Fraction
    branch_is_output: bool
    place: int
    coarsest: int | None
