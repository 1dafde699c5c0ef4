"""Networks as the command line names them: torchvision's, timm's, those of transformers, and the user's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import hf_models, model_inputs, models, own_classifiers, own_code, timm_models
from momentumnet.finetuning.model_inputs import Given, InputShape

MEANING = (
    "name of a torchvision model, timm:NAME, hf:PATH (a folder with config.json, or such a file), or module:function, "
    "which is called without arguments and returns an nn.Module"
)


def is_own(name: str) -> bool:
    """Whether the name is none of torchvision's."""
    return ":" in name


def build(name: str) -> nn.Module:
    """The network, with random weights unless those of its own lie beside it; nothing is downloaded.

    Args:
        name: A torchvision model, ``timm:NAME``, ``hf:PATH``, or ``module:function``.

    Raises:
        UsageError: There is none.
        MachineError: A package is missing.
    """
    if not is_own(name):
        return models.untrained(name)
    if name.startswith(timm_models.PREFIX):
        return timm_models.build(name.removeprefix(timm_models.PREFIX))
    if name.startswith(hf_models.PREFIX):
        return hf_models.build(Path(name.removeprefix(hf_models.PREFIX)))
    return own_code.model_of(name)


def example_inputs(
    name: str, model: nn.Module, given: Sequence[Given] | None, *, batch: int | None = None, default_batch: int = 1
) -> Any:
    """Example inputs as `momentumnet.convert` takes them.

    Args:
        name: Of the network.
        model: The network.
        given: What the command line says; None for what the network is made for.
        batch: Size of the batch dimension, where it is not that of the shapes.
        default_batch: The same where no shapes are given.

    Raises:
        UsageError: They cannot be made, or nothing tells what the network is made for.
    """
    if not is_own(name):
        if given is None:
            return models.example_inputs(name, None, batch=batch or default_batch)
        return models.as_taken(name, model_inputs.made(given, batch=batch))
    is_hf = name.startswith(hf_models.PREFIX)
    below = hf_models.vocabulary(model) if is_hf else 2
    if given is not None:
        return model_inputs.made(given, batch=batch, below=below)
    default: list[InputShape]
    if is_hf:
        default = hf_models.default_inputs(model, default_batch)
    elif name.startswith(timm_models.PREFIX):
        default = timm_models.default_inputs(model, default_batch)
    else:
        raise UsageError(f"{name} does not say what it takes: give --input 2x3x224x224, or --input module:function")
    return model_inputs.made(default, batch=batch, below=below)


def smallest_size(name: str) -> int:
    """The smallest side of images that the classifier ``name`` is made for."""
    return own_classifiers.smallest_size(name) if is_own(name) else models.smallest_size(name)


def build_classifier(
    name: str, *, weights: str | None, classes: int, image_size: int, say: Callable[[str], None]
) -> tuple[nn.Module, str]:
    """A classifier of images: see `momentumnet.finetuning.models` and `momentumnet.finetuning.own_classifiers`."""
    build = own_classifiers.build if is_own(name) else models.build_classifier
    return build(name, weights=weights, classes=classes, image_size=image_size, say=say)


def sized(name: str, classes: int, image_size: int) -> nn.Module:
    """The same for weights that are loaded into it."""
    sized = own_classifiers.sized if is_own(name) else models.sized
    return sized(name, classes, image_size)


def in_file_names(name: str) -> str:
    """The name as a part of those of files and folders."""
    return re.sub(r"[^\w.-]+", "-", name)
