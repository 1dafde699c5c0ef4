"""Two streams that are added to in turns, as one stream of the engine: the second one travels as its velocity."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from momentumnet.core.passes import reversible
from momentumnet.core.passes.passage import Passage
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.core.rules.additive import Additive
from momentumnet.core.state.coupling import Coupling
from momentumnet.core.state.plain import PlainState
from momentumnet.core.tensors.by_tensor import ByTensor


class TwoStreams(MomentumStream):
    """The stream of the functions that are called in turns on either of two tensors.

    Args:
        name: the stream's name in messages.
        blocks: names of the functions in call order.
        options: ``arithmetic`` and ``backward`` of `StreamSettings`.
    """

    has_gamma = False

    def __init__(self, name: str, blocks: tuple[str, ...], **options: Any) -> None:
        super().__init__(name, blocks, Fraction(1), final_velocity="drop", branch_is_output=True, **options)
        self._beside: ByTensor[Tensor] = ByTensor()

    def begin(self, x: Tensor, other: Tensor) -> None:
        """A pass will start from ``x``, on which the first function is called, beside the ``other`` tensor."""
        self._beside.put(x, other)

    def other_of(self, x: Tensor) -> Tensor:
        """What stands beside ``x``, which the last function has returned.

        Raises:
            RuntimeError: nothing does.
        """
        other = self._beside.take(x)
        if other is None:
            raise RuntimeError(f"stream {self.name!r} has lost the tensor beside its output; please report this")
        return other

    def _coupling(self, module: nn.Module) -> Coupling:
        return Additive()

    def _first_velocity(self, x: Tensor) -> Tensor | None:
        return self._beside.take(x)

    def _ended(self, passage: Passage, x: Tensor, velocity: Tensor | None) -> Tensor:
        tape = passage.tape
        if isinstance(tape, PlainState):
            self._beside.put(x, tape.velocity(x.dtype))
            return x
        tape.rest()
        other = reversible.reveal(x, velocity, tape)
        self._mark(tape, x, other)
        self._beside.put(x, other)
        tape.end()
        return x
