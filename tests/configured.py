"""Models with a config that is saved beside them, as those of transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.models import WIDTH, Chain, ResidualMLP

EXAMPLE = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))


class Config:
    """What is known of the configs that are saved with a model."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(vars(self))

    def save_pretrained(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(self.to_dict()))


def chain(blocks: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return Chain([ResidualMLP() for _ in range(blocks)])


def configured() -> nn.Module:
    model = chain()
    model.config = Config(hidden_size=WIDTH)
    return model
