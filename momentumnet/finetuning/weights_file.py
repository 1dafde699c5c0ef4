"""Weights of a run as safetensors, with a checksum in the header."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from momentumnet.command_errors import UsageError
from momentumnet.errors import CheckpointError
from momentumnet.files import whole_file


def save_weights(path: Path, model: nn.Module) -> None:
    """Writes parameters and buffers, by the names that they have in the stock model.

    Raises:
        StorageError: The file cannot be written.
    """
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    content = safetensors.torch.save(tensors, metadata={"format": "pt", "sha256": whole_file.UNSIGNED})
    whole_file.write(path, lambda sink: sink.write(content))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Reads what `save_weights` wrote.

    Raises:
        CheckpointError: The file is damaged.
    """
    whole_file.verify(path)
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def load_foreign(path: Path) -> dict[str, Tensor]:
    """Reads safetensors that anything may have written.

    Raises:
        UsageError: The file is damaged, or none.
    """
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a file of safetensors: {error}") from error
