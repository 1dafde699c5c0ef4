"""Blocks that checkpoint themselves although they are recomputed anyway, as transformers has them on request."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from momentumnet.errors import MomentumNetWarning

_FLAG = "gradient_checkpointing"  # of the layers of transformers


def warn_of(module: nn.Module, block: str, stream: str) -> None:
    """Warn of a block that is about to be recorded, if it is switched to checkpointing itself."""
    if not getattr(module, _FLAG, False) or not module.training or not torch.is_grad_enabled():
        return
    warnings.warn(
        f"gradient checkpointing is on for block {block!r} of stream {stream!r}, which is recomputed anyway: it saves "
        "no memory and costs one more forward. Leave it out (model.gradient_checkpointing_disable())",
        MomentumNetWarning,
        stacklevel=2,
    )
