"""Small random decoders of transformers, one of each way of writing a block and its cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from momentumnet.bench.zoo import architectures
from momentumnet.bench.zoo.transformers_models import build

_FAMILIES = {
    **architectures.DECODERS,
    **{name: architectures.EXPERTS[name] for name in ("MixtralForCausalLM", "Qwen2MoeForCausalLM")},
    "MambaForCausalLM": architectures.STATE_SPACES["MambaForCausalLM"],
}
NAMES = tuple(_FAMILIES)


def has(library: Any, name: str) -> bool:
    """Whether this version of transformers knows the family."""
    return hasattr(library, name)


def decoder(name: str) -> nn.Module:
    """A random one in training mode."""
    return build(name, _FAMILIES[name])


def batch(*, padded: bool, length: int = 12) -> dict[str, torch.Tensor]:
    """Two sequences of tokens; the second ends early where ``padded``."""
    torch.manual_seed(1)
    mask = torch.ones(2, length, dtype=torch.long)
    if padded:
        mask[1, 2 * length // 3 :] = 0
    return {"input_ids": torch.randint(5, 60, (2, length)), "attention_mask": mask}
