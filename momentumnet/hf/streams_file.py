"""``momentum.json`` in a checkpoint's folder: what the model is, and what its streams have learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from momentumnet.description.description import describe
from momentumnet.description.model_config import base_of
from momentumnet.errors import CheckpointError
from momentumnet.files import whole_file
from momentumnet.resume import training_state

NAME = "momentum.json"


def write(model: nn.Module, folder: Path) -> None:
    """Write the file for a converted model, or for one of peft around it."""
    base = base_of(model)
    whole_file.write_json(folder / NAME, {"description": describe(base), "streams": training_state(base)})


def read(folder: Path) -> dict[str, Any] | None:
    """What stands there: ``description`` and ``streams``; None if there is no such file.

    Raises:
        CheckpointError: the file is damaged, or holds something else.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    content = whole_file.read_json(path)
    if content.keys() != {"description", "streams"}:
        raise CheckpointError(f"{path} should hold 'description' and 'streams', as momentumnet.hf writes it")
    return content
