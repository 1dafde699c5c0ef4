"""Checkpoints of the ResNet for CIFAR images."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from momentumnet.bench.networks.cifar_networks import STAGES, CifarResNet


def load_checkpoint(path: Path) -> CifarResNet:
    """The network that a checkpoint file holds, of the depth that its own keys tell, in eval mode.

    Args:
        path: a state dict saved by ``torch.save``, alone or under "state_dict", names with or without the prefix
            "module." that ``DataParallel`` gives them.

    Raises:
        ValueError: the file is no checkpoint of a `CifarResNet`.
        OSError: it cannot be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is no file of tensors that torch.save wrote: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    counts = {stage: sum(_is_first_weight(name, stage) for name in state) for stage in STAGES}
    if "linear.weight" not in state or len(set(counts.values())) != 1:
        raise ValueError(
            f"{path} is no checkpoint of a CIFAR ResNet: expected linear.weight and as many blocks in each stage, got "
            f"{counts} among {len(state)} entries"
        )
    blocks = counts["layer1"]
    net = CifarResNet(6 * blocks + 2, classes=len(state["linear.weight"]))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit a CIFAR ResNet of {6 * blocks + 2} layers: {error}") from error
    return net.eval()


def _is_first_weight(name: str, stage: str) -> bool:
    return name.startswith(f"{stage}.") and name.endswith(".conv1.weight")
