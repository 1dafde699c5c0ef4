"""Streams that are named by hand: every child of a container is a block."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from momentumnet.errors import ConversionError


def named_by_hand(streams: Sequence[str] | None, others: str) -> Sequence[str]:
    """The containers that were named; raises `ConversionError` where options need a trace of example inputs."""
    if not streams:
        raise ConversionError(
            "convert needs example_inputs to find the residual streams, or streams=[...] that names their containers"
        )
    check_paths("streams", streams)
    if others == "checkpoint":
        raise ConversionError("others='checkpoint' needs example_inputs, to see which modules lie outside the streams")
    return streams


def check_paths(option: str, paths: Sequence[str]) -> None:
    """Raises `ConversionError` for anything but several names; a text is a sequence of letters."""
    several = isinstance(paths, Collection) and not isinstance(paths, str) and len(paths) > 0
    if not (several and all(isinstance(path, str) for path in paths)):
        raise ConversionError(
            f"{option} is {paths!r}; expected a non-empty sequence of container paths such as ['layer3']"
        )


def children_of(model: nn.Module, path: str) -> tuple[str, ...]:
    """The names of the container's children, as blocks of a stream named by hand.

    A module that stands in several places has one name, its first, as in ``named_modules``.
    """
    try:
        container = model.get_submodule(path)
    except AttributeError as error:
        names = [name for name, module in model.named_modules() if len(list(module.children())) > 1]
        raise ConversionError(f"the model has no module {path!r}; containers are {names[:20]}") from error
    first_names: dict[int, str] = {}
    for name, child in container._modules.items():
        if child is not None:
            first_names.setdefault(id(child), f"{path}.{name}" if path else name)
    children = tuple(first_names[id(child)] for child in container._modules.values() if child is not None)
    if not children:
        raise ConversionError(f"module {path!r} ({type(container).__name__}) has no children that could be blocks")
    return children
