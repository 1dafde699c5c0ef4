"""How many modules the containers hold in which a conversion's modules stand: a deeper network has the same names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn


def sizes_of(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """How many modules the lists have that hold these, one that stands there twice counted twice."""
    found = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
        container = model.get_submodule(path)
        if isinstance(container, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
            found[path] = len(container)
    return found


def differences(model: nn.Module, sizes: Mapping[str, int]) -> list[str]:
    """In words, which of these containers have another number of children in this model. It has to have them all."""
    # Not by `children`, which names a module once.
    now = {path: len(model.get_submodule(path)._modules) for path in sizes}
    return [f"{path!r} has {now[path]} modules, and had {size}" for path, size in sizes.items() if now[path] != size]
