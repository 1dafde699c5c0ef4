"""Image classifiers that are not torchvision's: timm's, those of transformers, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import hf_models, models, own_code, timm_models

SMALLEST = 32  # side of the images, where a network does not say what it needs


def smallest_size(name: str) -> int:
    """The smallest side of images that the network is made for, or the only one."""
    if name.startswith(timm_models.PREFIX):
        return timm_models.fixed_size(name.removeprefix(timm_models.PREFIX)) or SMALLEST
    if name.startswith(hf_models.PREFIX):
        return hf_models.fixed_size(_path(name)) or SMALLEST
    return SMALLEST


def build(
    name: str, *, weights: str | None, classes: int, image_size: int, say: Callable[[str], None]
) -> tuple[nn.Module, str]:
    """A classifier for a number of classes, and where its weights came from: ``none``, ``own`` or a file.

    Args:
        name: ``timm:NAME``, ``hf:PATH`` or ``module:function``.
        weights: ``none``, the path of a state dict, or None for those that the network brings: of timm none, of
            transformers those beside the config, of a function those of the network that it returns.
        classes: Number of classes; a head of another size is replaced by a new one.
        image_size: Side of the images.
        say: Takes one line to tell the user.

    Raises:
        UsageError: There is no such network, it is no image classifier, or the weights do not fit it.
        MachineError: A package is missing.
    """
    if weights is not None and Path(weights).is_file():
        model = models.from_file(Path(weights), name, classes, lambda count: sized(name, count, image_size))
    elif weights not in (None, "none"):
        raise UsageError(f"--weights {weights} is no file, and names no weights of {name}: give a file, or none")
    else:
        model, weights = _without_file(name, classes, image_size, own=weights is None, say=say)
    _check(model, name, classes, image_size)
    return model, str(weights)


def _without_file(
    name: str, classes: int, image_size: int, *, own: bool, say: Callable[[str], None]
) -> tuple[nn.Module, str]:
    if not name.startswith((timm_models.PREFIX, hf_models.PREFIX)):
        return sized(name, classes, image_size), "own"
    if own and name.startswith(hf_models.PREFIX):
        model, anew = hf_models.pretrained_classifier(_path(name), classes)
        if anew:
            say(f"{name}: {len(anew)} parameters start from random values: {', '.join(anew[:3])}")
        if model is not None:
            return model, "own"
    return sized(name, classes, image_size), "none"


def sized(name: str, classes: int, image_size: int) -> nn.Module:
    """The classifier for a number of classes and images of a size; its weights are random, or a function's.

    Raises:
        UsageError: There is none.
    """
    if name.startswith(timm_models.PREFIX):
        return timm_models.classifier(name.removeprefix(timm_models.PREFIX), classes, image_size)
    if name.startswith(hf_models.PREFIX):
        return hf_models.classifier(_path(name), classes, image_size)
    model = own_code.model_of(name)
    models.fit_head(model, classes)
    return model


def logits(output: Any) -> Tensor:
    """The scores of the classes in what a classifier returned: the output itself, or its ``logits``."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise UsageError(
            f"the network returned a {type(output).__name__} without logits; expected a tensor (images, classes)"
        )
    return found


def _path(name: str) -> Path:
    return Path(name.removeprefix(hf_models.PREFIX))


def _check(model: nn.Module, name: str, classes: int, image_size: int) -> None:
    """The network takes images and returns a score for each class."""
    images, was_training = torch.zeros(2, 3, image_size, image_size), model.training
    try:
        with torch.no_grad():
            shape = tuple(logits(model.eval()(images)).shape)
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError) as error:
        raise UsageError(
            f"{name} does not take images of {image_size} x {image_size}: {own_code.reason(error)}"
        ) from error
    finally:
        model.train(was_training)
    if shape != (2, classes):
        raise UsageError(f"{name} is no classifier of images: of 2 images it makes {shape}, expected (2, {classes})")
