"""Checkpoints of blocks that are recomputed anyway, as transformers and timm have them on request."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn

from momentumnet.errors import MomentumNetWarning

_FLAG = "gradient_checkpointing"  # of the layers of transformers
_FLAG_OF_PARENTS = "grad_checkpointing"  # of the modules of timm that call the layers


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


def warn_of_parents(model: nn.Module, streams: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Warn of a module that is switched to checkpointing the blocks that it holds; of the first one that is found.

    Args:
        model: the network.
        streams: the name of each stream whose blocks are recomputed, which another may have, too, and their paths.
    """
    for stream, blocks in streams:
        parents = {".".join(block.split(".")[:depth]) for block in blocks for depth in range(block.count(".") + 1)}
        for path in sorted(parents):
            if getattr(model.get_submodule(path), _FLAG_OF_PARENTS, False) is True:
                warnings.warn(
                    f"gradient checkpointing is on in {(path or type(model).__name__)!r}, around blocks of stream "
                    f"{stream!r}, which are recomputed anyway: it saves no memory and costs one more forward. Leave it "
                    "out (model.set_grad_checkpointing(False))",
                    MomentumNetWarning,
                    stacklevel=4,
                )
                return
