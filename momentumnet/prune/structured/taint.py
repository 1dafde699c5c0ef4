"""Who sees a channel: single channels of layers are made NaN, which every operation on them passes on.

NaN goes through products with zero too, so what is found does not depend on the weights. A weight layer that takes NaN
is told and gets zeros instead: the search ends at the layers that read a channel first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from momentumnet.prune.structured.layers import channel_axis, is_channelwise, is_rigid, is_weight_layer
from momentumnet.prune.structured.probing import outputs_of
from momentumnet.streams.blocks.nested import floating, tensors_in


@dataclass
class Spread:
    """Where NaN was seen in one pass.

    Attributes:
        seen: For each weight layer and each channelwise one that was called, which of its input's channels held NaN; a
            row for each call.
        rigid: Other layers with tensors of their own that took NaN.
        output: Whether an output of the network held NaN.
    """

    seen: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    rigid: list[nn.Module] = field(default_factory=list)
    output: bool = False

    def tainted(self) -> list[nn.Module]:
        """The layers in ``seen`` that took NaN in some call."""
        return [module for module, calls in self.seen.items() if any(bool(row.any()) for row in calls)]


def spread(model: nn.Module, example_inputs: Any, marked: Mapping[nn.Module, Tensor]) -> Spread:
    """One pass in which output channels of some layers are NaN.

    Args:
        model: Any module, in eval mode; it is left as it was found.
        example_inputs: As for `momentumnet.find_streams`.
        marked: For each layer which of its output channels are NaN.
    """
    found = Spread()

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_rigid(module):
            if any(_has_nan(tensor) for tensor in tensors_in([args, kwargs])):
                found.rigid.append(module)
            return None
        value = _first(args, kwargs)
        if not floating(value):
            return None
        mask = value.isnan()
        axis = channel_axis(module, dims=value.dim())
        found.seen.setdefault(module, []).append(mask.movedim(axis, 0).flatten(1).any(1).cpu())
        if not is_weight_layer(module):
            return None
        clean = value.masked_fill(mask, 0)
        return ((clean, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): clean})

    def mark(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        shape = [1] * output.dim()
        shape[channel_axis(module, dims=output.dim())] = -1
        return output.masked_fill(marked[module].to(output.device).view(shape), torch.nan)

    handles: list[RemovableHandle] = []
    try:
        for module in model.modules():
            if is_weight_layer(module) or is_channelwise(module) or is_rigid(module):
                handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
            if module in marked:
                handles.append(module.register_forward_hook(mark))
        found.output = any(_has_nan(tensor) for tensor in outputs_of(model, example_inputs))
    finally:
        for handle in handles:
            handle.remove()
    return found


def values_read(model: nn.Module, example_inputs: Any, readers: Collection[nn.Module]) -> list[nn.Module]:
    """The ``readers`` that take something else than zeros in a pass."""
    found: dict[nn.Module, None] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if bool(_first(args, kwargs).any()):
            found[module] = None

    handles = [reader.register_forward_pre_hook(look, with_kwargs=True) for reader in readers]
    try:
        outputs_of(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(found)


def channels_seen(
    model: nn.Module, example_inputs: Any, producers: Mapping[nn.Module, int]
) -> dict[nn.Module, Tensor | None]:
    """Which channel each entry of a layer's input comes from, for the layers that the producers' channels reach.

    Bit by bit: a pass marks the channels whose number has the bit, another those whose number has it not. An entry that
    comes from one channel is NaN in one of each two passes, and the bits spell the number; an entry that several
    channels were mixed into is NaN in both passes of some bit.

    Args:
        model: As for `spread`.
        example_inputs: As for `spread`.
        producers: Weight layers, with the number of channels that each gives.

    Returns:
        For each layer that took NaN the channel of each entry, None where there is no one channel, or where two calls
        of the layer differ.
    """
    bits = max(1, (max(producers.values(), default=1) - 1).bit_length())
    numbers = {module: torch.arange(count) for module, count in producers.items()}
    found: dict[nn.Module, list[Tensor]] = {}
    good: dict[nn.Module, bool] = {}
    for bit in range(bits):
        has = {module: (number >> bit) % 2 == 1 for module, number in numbers.items()}
        with_bit = spread(model, example_inputs, has)
        without = spread(model, example_inputs, {module: ~mask for module, mask in has.items()})
        for module in dict.fromkeys([*with_bit.tainted(), *without.tainted()]):
            pairs = list(zip(with_bit.seen[module], without.seen[module], strict=True))
            good[module] = good.get(module, True) and all(bool((one ^ other).all()) for one, other in pairs)
            index = found.setdefault(module, [torch.zeros(len(one), dtype=torch.long) for one, _ in pairs])
            for row, (one, _) in zip(index, pairs, strict=True):
                row += one.long() << bit
    return {
        module: rows[0] if good[module] and all(torch.equal(row, rows[0]) for row in rows) else None
        for module, rows in found.items()
    }


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return next(iter((*args, *kwargs.values())), None)


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isnan().any())
