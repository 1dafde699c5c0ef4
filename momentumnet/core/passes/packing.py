"""Several tensors that blocks hand on together, carried as one: image and text of double-stream blocks.

A block that takes a and b and returns both, each with a skip of its own, is a block on the pair (a, b). So one state
carries the pair, in one packed 1-D tensor that the engine takes for the stream's. The parent and the blocks know
nothing of it: they are given parts of it, tensors that lie in its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.core.passes.carried import described, refusal, same_shape
from momentumnet.core.passes.passage import keys_of, moved_in_graph, tensors_among
from momentumnet.core.tensors import transforms
from momentumnet.core.tensors.by_tensor import ByTensor
from momentumnet.core.tensors.inference import counted
from momentumnet.core.tensors.packed import Companion, Key, item_of, packed, parts_of, with_arguments, with_items
from momentumnet.errors import ConversionError
from momentumnet.recompute.arguments.arguments import named_arguments
from momentumnet.recompute.values.counters import version


@dataclass(frozen=True)
class _Part:
    """What is known of a tensor that was handed out."""

    whole: Tensor
    number: int
    node: torch.autograd.graph.Node | None  # its place in the graph when it was handed out
    counter: int  # and its in-place counter
    block: str  # which returned it


@dataclass(frozen=True)
class _Call:
    """One call of a block: where the parts stand, and their shapes."""

    stream: str
    block: str
    function: Callable[..., Any]
    keys: tuple[Key, ...]
    outputs: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    plainly: bool  # whether something looks at every operation

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """The block on the parts of the packed tensor, which stands in the place of each: what it returns, packed.

        Beside it what the block returned, without the parts.
        """
        parts = parts_of(named_arguments(args, kwargs)[self.keys[0]], self.shapes, plainly=self.plainly)
        args, kwargs = with_arguments(args, kwargs, dict(zip(self.keys, parts, strict=True)))
        output = self.function(*args, **kwargs)
        returned = [item_of(output, place) for place in self.outputs]
        for value, place, part in zip(returned, self.outputs, parts, strict=True):
            self._check(value, place, part)
        return packed(returned), with_items(output, dict.fromkeys(self.outputs))

    def _check(self, value: Any, place: int, part: Tensor) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and same_shape(value, part):
            return
        got = described(value) if isinstance(value, Tensor) else value
        raise ConversionError(
            f"block {self.block!r} of stream {self.stream!r} returned {got} in place {place}; the stream carries "
            f"{len(self.shapes)} tensors, and a block returns each as a floating-point tensor of the shape in which it "
            f"took it, here {tuple(part.shape)}, in places {list(self.outputs)} of a tuple, list or mapping"
        )


class Packing:
    """How the blocks of one stream are called on the parts of its tensor.

    Args:
        name: the stream's name in messages.
        blocks: names of the blocks in call order.
        arguments: for each the position or keyword in which it takes the tensor that it returns first.
        companions: the others.
    """

    def __init__(
        self, name: str, blocks: Sequence[str], arguments: Sequence[Key], companions: Sequence[Companion]
    ) -> None:
        self._name = name
        # For each block, by the places at which it stands: its arguments, and their places in what it returns.
        self._standing: dict[str, list[tuple[tuple[Key, ...], tuple[int, ...]]]] = {}
        for place, block in enumerate(blocks):
            keys = (arguments[place], *(companion.arguments[place] for companion in companions))
            outputs = (0, *(companion.outputs[place] for companion in companions))
            self._standing.setdefault(block, []).append((keys, outputs))
        self._parts: ByTensor[_Part] = ByTensor()
        self._shapes: ByTensor[tuple[torch.Size, ...]] = ByTensor()

    def wholes_of(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        """The packed tensors of which some of these are parts."""
        found = map(self._parts.get, tensors)
        return (part.whole for part in found if part is not None)

    def call(
        self,
        run: Callable[..., Any],
        carries_on: Callable[[Tensor], bool],
        block: str,
        module: nn.Module,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a block: ``run``, the stream's way to do so, sees one tensor. Return what the parent gets.

        Args:
            run: takes block, module, function, args and kwargs.
            carries_on: whether a packed tensor is handed on to a further block.
            block: the block's name.
            module: the block.
            function: what to call.
            args: its positional arguments.
            kwargs: its keyword arguments.

        Raises:
            ConversionError: a part is missing among the arguments, or cannot be carried.
        """
        keys, outputs, parts = self._found(block, module, tensors_among(args, kwargs))
        whole = self._whole_of(block, parts)
        if whole is None:
            whole = self._pack(block, keys, parts)
        shapes = tuple(part.shape for part in parts)
        self._shapes.put(whole, shapes)
        args, kwargs = with_arguments(args, kwargs, dict.fromkeys(keys, whole))
        plainly = transforms.at_work(whole) is not None
        on_parts = _Call(self._name, block, function, keys, outputs, shapes, plainly)
        x, output = run(block, module, on_parts, args, kwargs)
        goes_on = carries_on(x)  # with the stream's end they belong to the parent alone
        with counted():
            handed_out = parts_of(x, shapes, plainly=plainly, own_counters=not goes_on)
        for number, part in enumerate(handed_out if goes_on else ()):
            self._parts.put(part, _Part(x, number, part.grad_fn, version(part), block))
        return with_items(output, dict(zip(outputs, handed_out, strict=True)))

    def first_velocity(self, module: nn.Module, x: Tensor) -> Tensor:
        """The initial velocity of a packed tensor: that of the tensor which blocks return first; the others have none.

        Raises:
            ConversionError: the module changes the shape.
        """
        shapes = self._shapes.get(x) or (x.shape,)
        first, *others = parts_of(x, shapes, plainly=True)
        velocity = module(first)
        if not same_shape(velocity, first):
            raise ConversionError(
                f"stream {self._name!r}: the initial velocity has shape {tuple(velocity.shape)}, the stream "
                f"{tuple(first.shape)}; the module given as initial_velocity must keep the shape"
            )
        return packed([velocity, *(torch.zeros_like(other, dtype=velocity.dtype) for other in others)])

    def _found(
        self, block: str, module: nn.Module, tensors: Mapping[Key, Tensor]
    ) -> tuple[tuple[Key, ...], tuple[int, ...], list[Tensor]]:
        """Where the parts stand among the arguments and in what the block returns, and they themselves."""
        complete = []
        for known, outputs in self._standing[block]:
            keys = [next((key for key in keys_of(name, module) if key in tensors), None) for name in known]
            there = tuple(key for key in keys if key is not None)
            if len(there) == len(known) == len(set(there)):
                complete.append((there, outputs, [tensors[key] for key in there]))
        if not complete:
            known, _ = self._standing[block][0]
            raise ConversionError(
                f"block {block!r} of stream {self._name!r} takes the stream's {len(known)} tensors as its arguments "
                f"{list(known)}, and was called with tensors at {list(tensors)}; convert with example inputs that take "
                "this path"
            )
        return next((found for found in complete if self._whole_of(block, found[2]) is not None), complete[0])

    def _whole_of(self, block: str, parts: Sequence[Tensor]) -> Tensor | None:
        """The packed tensor that an earlier block has handed out in these very parts.

        Raises:
            ConversionError: it did, and they have got another place in the graph.
        """
        known = [self._parts.get(part) for part in parts]
        whole = None if known[0] is None else known[0].whole
        for number, (entry, part) in enumerate(zip(known, parts, strict=True)):
            if entry is None or entry.whole is not whole or entry.number != number:
                return None
            # A write moves it, too; that the counter tells, which the packed tensor has in common.
            if part.grad_fn is not entry.node and version(part) == entry.counter:
                raise moved_in_graph(self._name, entry.block, block)
        return whole

    def _pack(self, block: str, keys: Sequence[Key], parts: Sequence[Tensor]) -> Tensor:
        for key, part in zip(keys, parts, strict=True):
            reason = "it is no floating-point tensor" if not part.is_floating_point() else refusal(part)
            if part.is_nested:
                reason = "it is nested, and several tensors are carried in one; pad it in front of the stream"
            elif part.device != parts[0].device:
                reason = f"it lies on {part.device}, argument {keys[0]!r} on {parts[0].device}; move it there"
            if reason is not None:
                raise ConversionError(
                    f"stream {self._name!r} cannot carry argument {key!r} of block {block!r}: {reason}"
                )
        return packed(parts)
