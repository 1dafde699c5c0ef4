"""One mask on one parameter of one module: a parametrization of ``torch.nn.utils.parametrize``, put on and lifted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from momentumnet.streams.blocks.converted import BlockByForward, ConvertedBlock, converted_class, original_class


class Mask(nn.Module):
    """The effective weight ``torch.where(mask, weight, 0)``: whatever lies under the mask, NaN included, stays there.

    Attributes:
        mask: Buffer, True where the weight is kept.
        siblings: The parameters of the module that holds the weight, in the order in which it registered them.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, siblings: tuple[str, ...]) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.siblings = siblings

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0)


def mask_on(module: nn.Module, name: str) -> Mask | None:
    """The mask on the module's parameter ``name``, if there is one."""
    if not parametrize.is_parametrized(module, name):
        return None
    first = module.parametrizations[name][0]  # type: ignore[index]
    return first if isinstance(first, Mask) else None


def masked_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter under the mask."""
    parameter: nn.Parameter = module.parametrizations[name].original  # type: ignore[index, union-attr]
    return parameter


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """The module's own parameters in the order in which it registered them, those under masks included."""
    masks = [mask for name in getattr(module, "parametrizations", ()) if (mask := mask_on(module, name)) is not None]
    siblings = masks[0].siblings if masks else ()
    unmasked = (name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False))
    return (*siblings, *(name for name in unmasked if name not in siblings))


def put(module: nn.Module, name: str, mask: Tensor) -> None:
    """Mask the module's parameter ``name``; a mask that is there already is replaced."""
    present = mask_on(module, name)
    if present is not None:
        present.mask = mask  # another tensor: a recompute still finds the one that its forward used
        return
    parameter = getattr(module, name)
    names = parameter_names(module)
    # PyTorch calls set_ on what it parametrizes, which loses the node that DistributedDataParallel hooks gradients on.
    module._parameters[name] = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
    try:
        with _class_of_its_own(module):
            parametrize.register_parametrization(module, name, Mask(mask, names))
            module.parametrizations[name].original = parameter  # type: ignore[index, union-attr]
            _read_anew(module, name)
    except BaseException:
        module._parameters[name] = parameter
        raise


def _read_anew(module: nn.Module, name: str) -> None:
    """Leave ``parametrize.cached`` out: its key is the module that was masked first, which copies do not change.

    A copy would read the weights of the original. A recompute, too, needs the graph of its own call.
    """
    written = vars(type(module))[name].fset
    setattr(type(module), name, property(lambda self: self.parametrizations[name](), written))


def lift(module: nn.Module, name: str) -> None:
    """Take the mask off the module's parameter ``name``, which keeps its values and its place among the others."""
    names = parameter_names(module)
    with _class_of_its_own(module):
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    for own in names:  # PyTorch appends what it registers again, which would change the order of parameters()
        if own in module._parameters:
            module._parameters[own] = module._parameters.pop(own)


def liftable(module: nn.Module, name: str) -> bool:
    """Whether nothing was put around the mask since: another parametrization, or another class (``fully_shard``)."""
    own = original_class(type(module)) if isinstance(module, ConvertedBlock) else type(module)
    return name in vars(own) and len(module.parametrizations[name]) == 1  # type: ignore[index]


@contextmanager
def _class_of_its_own(module: nn.Module) -> Iterator[None]:
    """Inside, the module's class may be given properties, or lose them, without a change to any other module.

    Copies of a parametrized module share its class, in which PyTorch keeps the properties: without this, what is
    done to one would break the others. The subclass of a converted block goes around that class, never inside.
    """
    converted, by_forward = isinstance(module, ConvertedBlock), isinstance(module, BlockByForward)
    if converted:
        module.__class__ = original_class(type(module))
    if parametrize.is_parametrized(module):
        shared = type(module)
        attributes = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, attributes)
    try:
        yield
    finally:
        if converted:
            module.__class__ = converted_class(type(module), by_forward=by_forward)
