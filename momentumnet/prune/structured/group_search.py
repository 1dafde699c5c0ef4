"""The search for groups of channels that can leave a network, by what the network does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.errors import PruningError
from momentumnet.prune.masking.places import places_by_name
from momentumnet.prune.structured.channel_group import ChannelGroup
from momentumnet.prune.structured.layers import is_channelwise, is_weight_layer, own_parameters
from momentumnet.prune.structured.probing import misfit, outputs_of, parameters_kept
from momentumnet.prune.structured.taint import Spread, channels_seen, spread, values_read

_AWAY = 1 / 3  # share of its channels without which a network is tried out


@dataclass
class _Candidate:
    """Layers that give the same layers what these read."""

    producers: list[str]
    normalisations: list[str]
    consumers: list[str]
    size: int

    @property
    def receivers(self) -> list[str]:
        return [*self.normalisations, *self.consumers]


class GroupSearch:
    """Finds the groups of a network.

    These are the channels of its layers for which, on the example inputs,

    1. only dense linear layers and convolutions read them, each of which reads nothing else: NaN in the channels is
       seen in all of these layers' input, in no output, and by no other layer with parameters;
    2. no other channels are read together with them (which would be a residual stream's);
    3. with their parameters at zero, the readers read exact zeros;
    4. each entry of what the readers take belongs to one channel;
    5. without a third of them the network computes what it does with the parameters of this third at zero.

    Args:
        model: A copy to try things out on (`perturbed_copy` of `probing.py`); it is left as it was found.
        example_inputs: As for `momentumnet.find_streams`.

    Attributes:
        groups: The groups in the order of the model's layers.
        refused: Why the channels of the other dense layers and convolutions are not offered, by the layer's name.

    Raises:
        PruningError: the model returns no finite floating-point tensors on the example inputs.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self._model, self._inputs = model, example_inputs
        self._modules = dict(model.named_modules())
        self._names = {module: name for name, module in self._modules.items()}
        shared = [found for found in places_by_name(model).values() if len(found) > 1]
        self._shared = {place.path for found in shared for place in found}
        self.refused: dict[str, str] = {}
        candidates = [found for name in self._producers() if (found := self._alone(name)) is not None]
        candidates = self._silenced(self._apart(self._merged(candidates)))
        self.groups = self._fitting(self._traced(candidates))

    def _producers(self) -> list[str]:
        outputs = outputs_of(self._model, self._inputs)
        if not outputs or not all(bool(tensor.isfinite().all()) for tensor in outputs):
            found = "NaN or infinite values" if outputs else "no floating-point tensor"
            raise PruningError(f"the model returns {found} on example_inputs; pass inputs as in training")
        clean = spread(self._model, self._inputs, {})
        reasons = {name: self._obstacle(name, clean) for name, module in self._modules.items() if _has_channels(module)}
        self.refused.update({name: reason for name, reason in reasons.items() if reason})
        return [name for name, reason in reasons.items() if not reason]

    def _obstacle(self, name: str, clean: Spread) -> str:
        module = self._modules[name]
        if not is_weight_layer(module):
            return "a grouped convolution, whose channels belong together"
        if module not in clean.seen:
            return "it is not called (another module may read its weight)"
        if "weight" not in own_parameters(module):
            return "its weight is computed (weight or spectral norm); undo that first"
        if name in self._shared:
            return "it shares a parameter with another module"
        return "it has one channel" if len(module.weight) == 1 else ""

    def _alone(self, name: str) -> _Candidate | None:
        """Who reads a layer's channels; None where it is somebody who may not."""
        module = self._modules[name]
        size = len(module.weight)
        found = spread(self._model, self._inputs, {module: torch.ones(size, dtype=torch.bool)})
        receivers = found.tainted()
        consumers = [self._names[other] for other in receivers if is_weight_layer(other)]
        partly = [other for other in receivers if not all(bool(row.all()) for row in found.seen[other])]
        shared = [other for other in receivers if self._names[other] in self._shared]
        computed = [other for other in receivers if is_weight_layer(other) and "weight" not in own_parameters(other)]
        reason = ""
        if found.rigid:
            reason = f"{self._described(found.rigid[0])} takes its channels, and cannot be made smaller"
        elif found.output:
            reason = "its channels reach the output"
        elif not consumers:
            reason = "no dense linear layer or convolution reads its channels"
        elif partly:
            reason = f"{self._described(partly[0])} takes other channels beside (a concatenation, or another call)"
        elif shared:
            reason = f"{self._described(shared[0])} shares a parameter with another module"
        elif computed:
            reason = (
                f"the weight of {self._described(computed[0])} is computed (weight or spectral norm); undo that first"
            )
        if reason:
            self.refused[name] = reason
            return None
        return _Candidate([name], [self._names[m] for m in receivers if is_channelwise(m)], consumers, size)

    def _merged(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Layers that the same layers read belong together: what they give is added or multiplied."""
        merged: dict[tuple[frozenset[str], int], _Candidate] = {}
        for found in candidates:
            key = frozenset(found.consumers), found.size
            first = merged.setdefault(key, found)
            if first is not found:
                first.producers += found.producers
                first.normalisations += [name for name in found.normalisations if name not in first.normalisations]
        return list(merged.values())

    def _apart(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Those that share no reader with others."""
        left = []
        for found in candidates:
            others = [other for other in candidates if other is not found]
            common = [name for name in found.receivers for other in others if name in other.receivers]
            if common:
                self._refuse(found, f"{self._described(common[0])} takes them together with other layers' channels")
            else:
                left.append(found)
        return left

    def _silenced(self, candidates: list[_Candidate]) -> list[_Candidate]:
        left = []
        for found in candidates:
            layers = [self._modules[name] for name in (*found.producers, *found.normalisations)]
            with parameters_kept(layers):
                for parameter in (parameter for layer in layers for parameter in own_parameters(layer).values()):
                    parameter.data.zero_()
                loud = values_read(self._model, self._inputs, [self._modules[name] for name in found.consumers])
            if loud:
                name = self._described(loud[0])
                self._refuse(
                    found, f"with its parameters at zero {name} does not read zeros (a sigmoid, a bias, a sum?)"
                )
            else:
                left.append(found)
        return left

    def _traced(self, candidates: list[_Candidate]) -> list[ChannelGroup]:
        sizes = {self._modules[name]: found.size for found in candidates for name in found.producers}
        index = channels_seen(self._model, self._inputs, sizes)
        groups = []
        for found in candidates:
            rows = {name: index[self._modules[name]] for name in found.receivers}
            mixed = [name for name, row in rows.items() if row is None]
            if mixed:
                self._refuse(found, f"its channels are mixed before {self._described(mixed[0])}")
                continue
            known = {name: row for name, row in rows.items() if row is not None}
            groups.append(
                ChannelGroup(
                    tuple(found.producers), tuple(found.normalisations), tuple(found.consumers), found.size, known
                )
            )
        return groups

    def _fitting(self, groups: list[ChannelGroup]) -> list[ChannelGroup]:
        """Those without which the network works; all at once first, because they mostly do."""
        if not groups or self._misfit(groups) is None:
            return groups
        left = []
        for group in groups:
            reason = self._misfit([group])
            if reason is None:
                left.append(group)
            else:
                reason = f"the network does not do without some of its channels: {reason}"
                self.refused.update((name, reason) for name in group.producers)
        return left

    def _misfit(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Without the first ones, which moves all others, and without some here and there."""
        generator = torch.Generator().manual_seed(0)
        orders = [torch.arange(group.size) for group in groups]
        drawn = [torch.randperm(group.size, generator=generator) for group in groups]
        return self._misfit_without(groups, orders) or self._misfit_without(groups, drawn)

    def _misfit_without(self, groups: Sequence[ChannelGroup], orders: Sequence[Tensor]) -> str | None:
        kept = [order >= max(1, int(_AWAY * len(order))) for order in orders]
        layers = {name for group in groups for name in (*group.producers, *group.index)}
        with parameters_kept([self._modules[name] for name in layers]):
            for group, mask in zip(groups, kept, strict=True):
                group.silence(self._model, mask)
            expected = outputs_of(self._model, self._inputs)
            for group, mask in zip(groups, kept, strict=True):
                group.shrink(self._model, mask)
            return misfit(self._model, self._inputs, expected)

    def _refuse(self, candidate: _Candidate, reason: str) -> None:
        self.refused.update((name, reason) for name in candidate.producers)

    def _described(self, module: nn.Module | str) -> str:
        name = module if isinstance(module, str) else self._names[module]
        return f"{name} ({type(self._modules[name]).__name__})"


def _has_channels(module: nn.Module) -> bool:
    return is_weight_layer(module) or isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
