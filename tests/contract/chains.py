"""A chain of blocks of one make, with stored activations and reversible."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, Chain


def rows() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


def nets(build: Any, **options: Any) -> list[nn.Module]:
    torch.manual_seed(0)
    chain = Chain([build() for _ in range(3)])
    options = {"streams": ["blocks"], **options}
    return [mn.convert(chain, rows(), backward=backward, **options) for backward in ("stored", "reversible")]
