"""Networks of timm by name, with random weights."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import own_code
from momentumnet.finetuning.model_inputs import InputShape

PREFIX = "timm:"


def build(name: str, **options: Any) -> nn.Module:
    """The network ``name`` of timm.

    Args:
        name: Without the prefix.
        options: For ``timm.create_model``.

    Raises:
        MachineError: timm is not installed.
        UsageError: It has no such network.
    """
    timm = _timm(name)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists them all"
        raise UsageError(f"timm has no model {name!r}; {hint}")
    model: nn.Module = timm.create_model(name, **options)
    return model


def _timm(name: str) -> Any:
    return own_code.package("timm", extra="timm", asked=f"{PREFIX}{name}")


def default_inputs(model: Any, batch: int) -> list[InputShape]:
    """What the network is made for."""
    return [InputShape((batch, *model.pretrained_cfg["input_size"]))]


def fixed_size(name: str) -> int | None:
    """The side of the images that the network takes, where it takes no other."""
    config = _timm(name).get_pretrained_cfg(name, allow_unregistered=True)
    fixed = config is not None and config.fixed_input_size
    return int(config.input_size[-1]) if fixed else None


def classifier(name: str, classes: int, image_size: int) -> nn.Module:
    """The network for a number of classes and images of a size."""
    fixed = fixed_size(name)
    size = {} if fixed in (None, image_size) else {"img_size": image_size}
    try:
        return build(name, num_classes=classes, **size)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UsageError(
            f"{PREFIX}{name} cannot be built for images of {image_size} x {image_size}: {own_code.reason(error)}"
        ) from error
