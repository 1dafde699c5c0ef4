"""The search for residual blocks that can leave a network, by what the network does without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.prune.masking.places import places_by_name
from momentumnet.prune.structured.probing import misfit, outputs_of, parameters_kept
from momentumnet.streams.finding.discover import find_streams


class DroppedBlock(nn.Module):
    """In the place of a block that is gone: returns the stream as it came in, whatever else it is called with.

    Args:
        stream: Position or keyword of the stream among the arguments.
    """

    def __init__(self, stream: int | str = 0) -> None:
        super().__init__()
        self.stream = stream

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[self.stream] if isinstance(self.stream, int) else kwargs[self.stream]

    def extra_repr(self) -> str:
        return "" if self.stream == 0 else f"stream={self.stream!r}"


class BlockSearch:
    """Finds the blocks of a network's residual streams that can leave it.

    These are the blocks for which, on the example inputs,

    1. no other module shares their parameters,
    2. with their parameters at zero they return what they take, bit for bit,
    3. the network computes the same with a `DroppedBlock` in their place.

    Args:
        model: A copy to try things out on (`perturbed_copy` of `probing.py`); it is left as it was found.
        example_inputs: As for `momentumnet.find_streams`.

    Attributes:
        streams: For each stream's path the names of its blocks that can go, in call order; where several streams have
            one path, in its place those of the first and the last block ("features.3 to features.5").
        stand_ins: For each of these blocks what can take its place.
        refused: Why other blocks of the streams cannot, by name.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self._model, self._inputs = model, example_inputs
        self.stand_ins: dict[str, DroppedBlock] = {}
        self.refused: dict[str, str] = {}
        found = find_streams(model, example_inputs)
        names = dict.fromkeys(name for stream in found for name in stream.blocks)
        for name in names:
            reason = self._obstacle(name) or self._silenced(name)
            if reason:
                self.refused[name] = reason
        self._drop_misfits()
        self.streams: dict[str, tuple[str, ...]] = {}
        placed: set[str] = set()
        paths = [stream.path for stream in found]
        for stream in found:
            left = tuple(name for name in dict.fromkeys(stream.blocks) if name in self.stand_ins and name not in placed)
            placed.update(left)
            if left:
                is_alone = paths.count(stream.path) == 1
                self.streams[stream.path if is_alone else f"{stream.blocks[0]} to {stream.blocks[-1]}"] = left

    def _obstacle(self, name: str) -> str:
        inside = {id(module) for module in self._model.get_submodule(name).modules()}
        for places in places_by_name(self._model).values():
            within = [id(place.module) in inside for place in places]
            if any(within) and not all(within):
                outside = places[within.index(False)].name
                return f"it shares a parameter with a module outside, {outside}"
        return ""

    def _silenced(self, name: str) -> str:
        """Notes which argument the block returns without its parameters, or says why it returns none."""
        block = self._model.get_submodule(name)
        returned: list[int | str] = []
        reasons: list[str] = []

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not isinstance(output, Tensor):
                reasons.append(f"it returns a {type(output).__name__}, which nothing here can take the place of")
                return
            arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            same = [key for key, value in arguments if isinstance(value, Tensor) and torch.equal(value, output)]
            returned.extend(same[:1])
            if not same and bool(output.isnan().any()):
                reasons.append(
                    "with its parameters at zero it returns NaN (a weight that is computed, as by weight or spectral "
                    "norm? undo that first)"
                )
            elif not same:
                reasons.append(
                    "with its parameters at zero it does not return its input (a norm or an activation after the sum, "
                    "or a factor on the skip)"
                )

        handle = block.register_forward_hook(look, with_kwargs=True)
        try:
            with parameters_kept(list(block.modules())):
                for parameter in block.parameters():
                    parameter.data.zero_()
                outputs_of(self._model, self._inputs)
        finally:
            handle.remove()
        if not reasons and len(set(returned)) != 1:
            reasons.append("its calls take the stream in different places")
        if not reasons:
            self.stand_ins[name] = DroppedBlock(returned[0])
        return reasons[0] if reasons else ""

    def _drop_misfits(self) -> None:
        """All blocks at once first, because mostly all can go."""
        if not self.stand_ins or self._misfit(list(self.stand_ins)) is None:
            return
        for name in list(self.stand_ins):
            reason = self._misfit([name])
            if reason is not None:
                del self.stand_ins[name]
                self.refused[name] = f"the network does not do without it: {reason}"

    def _misfit(self, names: list[str]) -> str | None:
        blocks = {name: self._model.get_submodule(name) for name in names}
        with parameters_kept([module for block in blocks.values() for module in block.modules()]):
            silence(self._model, names)
            expected = outputs_of(self._model, self._inputs)
            try:
                replace(self._model, {name: self.stand_ins[name] for name in names})
                return misfit(self._model, self._inputs, expected)
            finally:
                replace(self._model, blocks)


def silence(model: nn.Module, names: Iterable[str]) -> None:
    """Sets all parameters of blocks to zero, in place: what masks do."""
    for name in names:
        for parameter in model.get_submodule(name).parameters():
            parameter.data.zero_()


def replace(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Puts modules in the place of blocks, wherever these stand in the model."""
    new = {model.get_submodule(name): block for name, block in blocks.items()}
    for parent in list(model.modules()):
        for own, child in list(parent._modules.items()):
            if child in new:
                parent._modules[own] = new[child]
