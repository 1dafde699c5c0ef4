"""The models of the zoo, from three libraries, in one form."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

LIBRARIES = ("torchvision", "timm", "transformers")


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        library: Where it comes from, one of `LIBRARIES`.
        name: Its name there.
        build: Makes it, with random weights, in training mode; each time the same.
        example: Makes the inputs in which its streams are found, as `momentumnet.convert` takes them.
        step: Makes those of a training step.
        large: Whether it is too large for a comparison of gradients.
        layers: Tells how many layers its longest stack has, if it was made deeper than it usually is; None if not.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    step: Callable[[], Any]
    large: bool = False
    layers: Callable[[], int | None] = lambda: None


def entries(libraries: Sequence[str], *, layers: int | None = None) -> Iterator[Entry]:
    """The models of the libraries, of each the large ones last.

    Those are left out that the installed version does not have.

    Args:
        libraries: Some of `LIBRARIES`.
        layers: How many layers the stacks of timm's and transformers' models have at least, where that can be said
            to them; None for the usual small numbers.
    """
    for library in libraries:
        if library == "torchvision":
            from momentumnet.bench.zoo import torchvision_models

            yield from torchvision_models.entries()
        elif library == "timm":
            from momentumnet.bench.zoo import timm_models

            yield from timm_models.entries(layers=layers)
        else:
            from momentumnet.bench.zoo import transformers_models

            yield from transformers_models.entries(layers=layers)


def missing(libraries: Sequence[str]) -> list[str]:
    """Those of the libraries that are not installed."""
    return [library for library in libraries if importlib.util.find_spec(library) is None]


def version_of(library: str) -> str | None:
    """The installed version; None where there is none."""
    if missing([library]):
        return None
    return str(importlib.import_module(library).__version__)
