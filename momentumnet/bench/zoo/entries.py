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
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    step: Callable[[], Any]
    large: bool = False


def entries(libraries: Sequence[str]) -> Iterator[Entry]:
    """The models of the libraries, of each the large ones last.

    Those are left out that the installed version does not have.
    """
    for library in libraries:
        if library == "torchvision":
            from momentumnet.bench.zoo import torchvision_models

            yield from torchvision_models.entries()
        elif library == "timm":
            from momentumnet.bench.zoo import timm_models

            yield from timm_models.entries()
        else:
            from momentumnet.bench.zoo import transformers_models

            yield from transformers_models.entries()


def missing(libraries: Sequence[str]) -> list[str]:
    """Those of the libraries that are not installed."""
    return [library for library in libraries if importlib.util.find_spec(library) is None]


def version_of(library: str) -> str | None:
    """The installed version; None where there is none."""
    if missing([library]):
        return None
    return str(importlib.import_module(library).__version__)
