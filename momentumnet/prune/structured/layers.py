"""Layers of which channels can be taken away: where their channels lie, in their tensors and in what they take."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_BY_DIMENSIONS_BEHIND: tuple[tuple[type[nn.Module], ...], ...] = (
    (nn.Linear,),
    (nn.Conv1d, nn.InstanceNorm1d),
    (nn.Conv2d, nn.InstanceNorm2d),
    (nn.Conv3d, nn.InstanceNorm3d),
)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm  # the common base class of all of them has no public name


class Slice(NamedTuple):
    """Entries of one tensor of a layer along one dimension, each belonging to one of ``channels``."""

    layer: str
    tensor: str
    dim: int
    channels: Tensor

    @property
    def name(self) -> str:
        """Dotted name of the tensor."""
        return f"{self.layer}.{self.tensor}" if self.layer else self.tensor


def is_weight_layer(module: nn.Module) -> bool:
    """Whether the layer mixes all its channels by a weight of its own: dense linear layers and convolutions."""
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1


def is_channelwise(module: nn.Module) -> bool:
    """Whether the layer has numbers of its own for each channel, and treats each channel by itself."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters > 1
    return isinstance(module, (_BATCH_NORM, *_INSTANCE_NORMS))


def is_rigid(module: nn.Module) -> bool:
    """Whether the layer has parameters of a fixed size that nothing here can make smaller."""
    if is_weight_layer(module) or is_channelwise(module) or next(module.children(), None) is not None:
        return False
    return any(parameter is not None and parameter.numel() > 1 for parameter in module._parameters.values())


def channel_axis(module: nn.Module, *, dims: int) -> int:
    """The dimension along which the channels lie in what the layer takes and gives, of ``dims`` dimensions."""
    for behind, kinds in enumerate(_BY_DIMENSIONS_BEHIND):
        if isinstance(module, kinds):
            return dims - behind - 1
    return min(1, dims - 1)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Weight and bias of a layer, those of them that it has; nothing where they are computed."""
    found = {own: module._parameters.get(own) for own in ("weight", "bias")}
    return {own: parameter for own, parameter in found.items() if parameter is not None}


def written(name: str, module: nn.Module) -> list[Slice]:
    """Where the channels that a weight layer gives lie in its tensors."""
    return [Slice(name, own, 0, torch.arange(len(value))) for own, value in own_parameters(module).items()]


def taken(name: str, module: nn.Module, channels: Tensor) -> list[Slice]:
    """Where the channels that a layer takes lie in its tensors; ``channels`` gives that of each entry of its input."""
    if is_weight_layer(module):
        return [Slice(name, "weight", 1, channels)]
    statistics = [own for own in ("running_mean", "running_var") if module._buffers.get(own) is not None]
    return [Slice(name, own, 0, channels) for own in (*own_parameters(module), *statistics)]


def keep_channels(model: nn.Module, part: Slice, kept: Tensor) -> None:
    """Makes one tensor of a layer smaller, in place: only entries of channels that are kept stay."""
    module = model.get_submodule(part.layer)
    old: Tensor = getattr(module, part.tensor)
    left = old.detach().index_select(part.dim, torch.nonzero(kept[part.channels]).flatten().to(old.device))
    if part.tensor in module._parameters:
        module._parameters[part.tensor] = nn.Parameter(left, requires_grad=old.requires_grad)
    else:
        module._buffers[part.tensor] = left


def tell_sizes(module: nn.Module, *, given: int | None = None, taken: int | None = None) -> None:
    """Sets the attributes in which a layer keeps how many channels it gives and takes; None leaves them."""
    if isinstance(module, nn.PReLU):
        sizes = {"num_parameters": taken}
    elif is_channelwise(module):
        sizes = {"num_features": taken}
    elif isinstance(module, nn.Linear):
        sizes = {"in_features": taken, "out_features": given}
    else:
        sizes = {"in_channels": taken, "out_channels": given}
    for attribute, size in sizes.items():
        if size is not None:
            setattr(module, attribute, size)
