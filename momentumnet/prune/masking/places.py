"""Where a model's parameters are, under the names that they have without masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from momentumnet.prune.masking.parametrization import Mask, mask_on, masked_parameter, parameter_names


@dataclass(frozen=True)
class Place:
    """One attribute of one module that is a parameter; a shared parameter has several places.

    Attributes:
        path: The module's dotted name.
        own: The attribute's name.
        module: The module.
        parameter: The parameter, that under the mask if there is one.
        mask: The mask on it.
    """

    path: str
    own: str
    module: nn.Module
    parameter: nn.Parameter
    mask: Mask | None

    @property
    def name(self) -> str:
        """The dotted name of the parameter in the bare model."""
        return f"{self.path}.{self.own}" if self.path else self.own


def places(model: nn.Module, *, every_path: bool = False) -> Iterator[Place]:
    """Every place of every parameter, in the order of the bare model.

    A module that stands in several places of the model counts once, under its first name, unless ``every_path``.
    """
    for path, module in model.named_modules(remove_duplicate=not every_path):
        if isinstance(module, ParametrizationList) and isinstance(module[0], Mask):
            continue  # its parameter is counted where it stands without the mask
        for own in parameter_names(module):
            mask = mask_on(module, own)
            parameter = getattr(module, own) if mask is None else masked_parameter(module, own)
            yield Place(path, own, module, parameter, mask)


def places_by_name(model: nn.Module) -> dict[str, list[Place]]:
    """The places of each parameter under its name, which is that of its first place, as in ``named_parameters``."""
    by_parameter: dict[int, list[Place]] = {}
    for place in places(model):
        by_parameter.setdefault(id(place.parameter), []).append(place)
    return {found[0].name: found for found in by_parameter.values()}


def check_whole(action: str, parameters: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a parameter is of another kind than PyTorch's own, such as the shards of ``fully_shard``."""
    for name, parameter in parameters.items():
        if not issubclass(type(parameter), nn.Parameter):
            raise ValueError(
                f"{action} needs whole parameters, but {name!r} is a {type(parameter).__name__}; do it before the "
                "model is sharded or quantized"
            )
