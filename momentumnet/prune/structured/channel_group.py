"""What a group of channels is, and how its channels leave a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from momentumnet.prune.structured.layers import Slice, keep_channels, taken, tell_sizes, written


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are made, normalised and read together: channel c of all these layers can only go at once.

    Attributes:
        producers: Names of the layers that give the channels; several where what they give is added or multiplied.
        normalisations: Layers on the way with numbers for each channel (batch and instance norms, PReLU).
        consumers: Layers that read the channels.
        size: Number of channels.
        index: For each normalisation and consumer the channel that each entry of its input belongs to; a linear layer
            behind a flattened image has many entries of a channel.
    """

    producers: tuple[str, ...]
    normalisations: tuple[str, ...]
    consumers: tuple[str, ...]
    size: int
    index: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """The producers' names, joined by ``+``."""
        return "+".join(self.producers)

    def __str__(self) -> str:
        return f"{' -> '.join([self.name, *self.normalisations, ', '.join(self.consumers)])}: {self.size} channels"

    def slices(self, model: nn.Module) -> list[Slice]:
        """Where the channels lie in the parameters and buffers of a model."""
        given = [part for name in self.producers for part in written(name, model.get_submodule(name))]
        read = [taken(name, model.get_submodule(name), index) for name, index in self.index.items()]
        return given + [part for parts in read for part in parts]

    def shrink(self, model: nn.Module, kept: Tensor) -> None:
        """Takes channels out of a model, in place; those stay that ``kept``, a bool for each, says."""
        for part in self.slices(model):
            keep_channels(model, part, kept)
        for name in self.producers:
            tell_sizes(model.get_submodule(name), given=int(kept.sum()))
        for name, index in self.index.items():
            tell_sizes(model.get_submodule(name), taken=int(kept[index].sum()))

    def silence(self, model: nn.Module, kept: Tensor) -> None:
        """Sets the parameters of the channels that are not kept to zero, in place: what masks do."""
        parameters = dict(model.named_parameters())
        for part in self.slices(model):
            if part.name in parameters:
                away = torch.nonzero(~kept[part.channels]).flatten().to(parameters[part.name].device)
                parameters[part.name].data.index_fill_(part.dim, away, 0)
