"""Passes through a stream on their way: the velocity travels with the identity of the stream tensor.

A block that receives the very tensor that an earlier block of the stream returned goes on from there; the first block
starts a new pass. Whatever would lose the velocity is refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.core.passes.carried import refusal, refusal_of_arguments, same_shape
from momentumnet.core.passes.members import Stretch
from momentumnet.core.rewind.tape import Tape
from momentumnet.core.scaling.scale import ScalePlan
from momentumnet.core.state.coupling import Coupling
from momentumnet.core.state.plain import PlainState
from momentumnet.core.tensors.by_tensor import ByTensor
from momentumnet.core.tensors.inference import NO_COUNTER
from momentumnet.errors import ConversionError
from momentumnet.recompute.arguments.arguments import named_arguments, parameter_names
from momentumnet.recompute.values.counters import version


@dataclass
class Passage:
    """Where one pass through the stream stands: carried by the identity of the tensor handed to the parent."""

    tape: Tape | PlainState
    coupling: Coupling
    last: int  # place of the block that returned the tensor; -1 before the first
    velocity: Tensor | None
    counter: int  # the tensor's in-place counter when it was handed out
    node: torch.autograd.graph.Node | None  # and its place in the graph
    unfinished: Unfinished
    rivals: frozenset[int | str] = frozenset()  # arguments of the first block that could have been the stream, too
    plan: ScalePlan | None = None  # how its scale was chosen


class Unfinished:
    """Alive while a pass through the stream may still go on; knows its last block."""

    __slots__ = ("__weakref__", "_stretch", "has_finished", "last", "over")

    def __init__(self, stretch: Stretch) -> None:
        self.last = -1
        self.has_finished = False
        self.over = False
        self._stretch = stretch

    def end(self, _: object) -> None:
        """Backward has come by: a pass that left out its last block goes on no more."""
        if not self.over and not self.has_finished:
            self._stretch.was_left(self.last)
        self.over = True


class Passages:
    """The passes that are under way in one stream.

    Args:
        name: the stream's name in messages.
        blocks: names of the blocks in call order.
        arguments: for each the position or keyword in which it takes the stream tensor, if that is known.
        flushes: whether something is added behind the last block.
    """

    def __init__(
        self, name: str, blocks: tuple[str, ...], arguments: Sequence[int | str] | None = None, *, flushes: bool
    ) -> None:
        self._name, self._blocks = name, blocks
        self._places: dict[str, tuple[int, ...]] = {}
        for place, block in enumerate(blocks):
            self._places[block] = (*self._places.get(block, ()), place)
        self._arguments = arguments
        self._carried: ByTensor[Passage] = ByTensor()
        self._unfinished: Callable[[], Unfinished | None] = _none
        self._is_open = False  # a block has returned a tensor that no further one has received yet
        # Whether a pass was left before its last block: others may be then, and nobody would look at their reports.
        self.may_end_early = False
        self._stretch = Stretch(name, blocks, flushes=flushes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unfinished": _none}

    def stream_argument(
        self, block: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[int | str, Tensor, bool]:
        """The stream tensor among a block's arguments, where it stands, and whether it can be no other.

        That is one that is carried, else the one that the block is known to take as such, else the first float.

        Raises:
            ConversionError: there is no floating-point tensor among them, or one that no stream can carry.
        """
        tensors = tensors_among(args, kwargs)
        known = next((key for key in self._known_arguments(block, module, tensors) if key in tensors), None)
        if known is not None:
            tensors = {known: tensors[known], **tensors}
        for key, tensor in tensors.items():
            if self._carried.get(tensor) is not None:
                return key, tensor, True
        for key, tensor in tensors.items():
            if tensor.is_floating_point():
                reason = refusal(tensor)
                if reason is not None:
                    raise ConversionError(
                        f"stream {self._name!r} cannot carry argument {key!r} of block {block!r}: {reason}"
                    )
                return key, tensor, key == known
        raise ConversionError(
            f"block {block!r} of stream {self._name!r} was called without a floating-point tensor among its "
            f"arguments: {refusal_of_arguments(args, kwargs, tensors)}"
        )

    def _known_arguments(
        self, block: str, module: nn.Module, tensors: Mapping[int | str, Tensor]
    ) -> Iterator[int | str]:
        """Where the block takes the stream, as far as that is known, by position and by name."""
        if self._arguments is None or len(tensors) < 2:
            return
        for place in self._places[block]:
            yield from keys_of(self._arguments[place], module)

    def goes_on(self, tensors: Iterable[Tensor]) -> bool:
        """Whether a pass that is under way comes with one of the tensors."""
        return self._is_open and any(map(self.carries, tensors))

    def carries(self, x: Tensor) -> bool:
        """Whether the tensor carries a pass."""
        return self._carried.get(x) is not None

    def take(self, x: Tensor) -> Passage | None:
        """The pass that the tensor carries, once."""
        return self._carried.take(x)

    def place_of(self, block: str, passage: Passage | None) -> int:
        """Where the block stands in the pass, or in a new one.

        Raises:
            ConversionError: behind the last block of the pass; or a new pass begins in the middle while another one has
                lost its velocity.
        """
        last = -1 if passage is None else passage.last
        place = next((place for place in self._places[block] if place > last), None)
        if place is None:
            raise ConversionError(
                f"block {block!r} of stream {self._name!r} was called after block {self._blocks[last]!r}; the stream "
                f"found in the example inputs was {list(self._blocks)}. Convert with example inputs that take this path"
            )
        unfinished = self._unfinished()
        self.may_end_early |= passage is None and self._is_open
        if passage is None and place > 0 and unfinished is not None and not unfinished.over:
            raise ConversionError(
                f"block {block!r} of stream {self._name!r} received a tensor that block "
                f"{self._blocks[unfinished.last]!r} did not return, so its velocity is lost. Something between "
                "the two blocks replaces the tensor; convert with streams=[...] so that the stream ends there"
            )
        if passage is None:
            self._stretch.begins(place)
        return place

    def check_handover(
        self, block: str, key: int | str, x: Tensor, passage: Passage, transform: str | None = None
    ) -> None:
        """The tensor is as the last block returned it, and stands where the first block's did.

        Nor has a ``transform`` begun since, to which the blocks before would be constants.

        Raises:
            ConversionError: it is not, or does not.
        """
        last = self._blocks[passage.last]
        if transform is not None and not isinstance(passage.tape, PlainState):
            raise ConversionError(
                f"stream {self._name!r}: {transform} begins between block {last!r} and block {block!r}, which would "
                "lose what the velocity has gathered; begin it before the stream's first block"
            )
        if passage.counter == NO_COUNTER:
            raise ConversionError(
                f"stream {self._name!r}: inference mode begins between two blocks, before block {last!r}, where a "
                "change in place could not be seen any more; use torch.no_grad there, or begin it before the stream"
            )
        if version(x) != passage.counter:
            raise ConversionError(
                f"stream {self._name!r}: the tensor that block {last!r} returned was changed in place before block "
                f"{block!r} received it; make that change out of place, outside the stream"
            )
        if x.grad_fn is not passage.node:
            raise moved_in_graph(self._name, last, block)
        if key in passage.rivals:
            raise ConversionError(
                f"stream {self._name!r} began with another argument of its first block than argument {key!r}, in which "
                f"block {block!r} receives it; convert with example inputs, which tell the arguments apart, or pass "
                "the stream tensor as the blocks' first argument"
            )

    def carry(self, x: Tensor, passage: Passage) -> None:
        """``x``, which the block at ``passage.last`` returns, carries the pass on."""
        passage.unfinished.last = passage.last
        self._is_open = True
        # The graph keeps the mark alive; without a graph nothing else would, and a lost velocity would go unseen.
        if x.grad_fn is not None:
            x.grad_fn.register_prehook(passage.unfinished.end)
            self._unfinished = weakref.ref(passage.unfinished)
        else:
            unfinished = passage.unfinished
            self._unfinished = lambda: unfinished
        self._carried.put(x, passage)

    def unfinished(self) -> Unfinished:
        """The mark of a pass that begins."""
        return Unfinished(self._stretch)

    def finish(self, passage: Passage) -> None:
        """The pass has come to the stream's end."""
        passage.unfinished.has_finished = True
        self._is_open = False
        self._unfinished = _none
        self._stretch.ends()


def _none() -> None:
    """No pass is under way."""


def moved_in_graph(stream: str, last: str, block: str) -> ConversionError:
    """The error for a stream tensor that is no longer where the block ``last`` has put it in the graph."""
    return ConversionError(
        f"stream {stream!r}: the tensor that block {last!r} returned has got another place in the autograd "
        f"graph before block {block!r} received it, so the gradient of its velocity is lost. Something calls "
        f"block {last!r} inside a function of its own, as torch.utils.checkpoint(use_reentrant=True) does; "
        "take it away (the stream's blocks are recomputed anyway), or pass use_reentrant=False"
    )


def keys_of(key: int | str, module: nn.Module) -> Iterator[int | str]:
    """Where a module may be given an argument: by the position or keyword ``key``, or the other way."""
    yield key
    names = parameter_names(module)
    if isinstance(key, str) and key in names:
        yield names.index(key)
    elif isinstance(key, int) and key < len(names):
        yield names[key]


def tensors_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Tensor]:
    """The tensors among the arguments, by position or keyword."""
    return {key: value for key, value in named_arguments(args, kwargs).items() if isinstance(value, Tensor)}


def rivals_of(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[int | str]:
    """The arguments beside ``x`` that have its shape and kind."""
    return frozenset(
        key
        for key, value in tensors_among(args, kwargs).items()
        if value is not x and value.is_floating_point() and not value.is_nested and same_shape(value, x)
    )
