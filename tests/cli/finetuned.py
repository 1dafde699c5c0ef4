"""A small run of momentumnet finetune: how it is started and interrupted, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from momentumnet.finetuning.training import Trainer
from momentumnet.finetuning.weights_file import load_weights

SMALL = ("--model", "mobilenet_v3_small", "--weights", "none", "--image-size", "32", "--batch-size", "4")


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_weights(Path(folder, "model.safetensors"))


def learned(network: dict[str, Any]) -> list[dict[str, float]]:
    """What a network's epochs came to, but for their time."""
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in network["epochs"]]


def interrupt_in_epoch(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    train = Trainer._train

    def interrupted(self: Trainer, epoch: int, advance: Callable[[], object]) -> float:
        loss = train(self, epoch, advance)
        if epoch == number:
            raise KeyboardInterrupt
        return loss

    monkeypatch.setattr(Trainer, "_train", interrupted)
