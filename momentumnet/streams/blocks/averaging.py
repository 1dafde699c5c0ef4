"""Whether `DistributedDataParallel` averages the gradients of converted blocks that run inside of it.

It averages those of the parameters that it was made with, and knows of no others: where the network inside of it is
replaced by a converted copy, each process would train a network of its own, in silence.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from momentumnet.errors import ConversionError

# By wrapper, the blocks that have been looked at.
_SEEN: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()


def is_averaging() -> bool:
    """Whether the forward of a wrapper is under way."""
    return DistributedDataParallel._active_ddp_module is not None


def check_averaged(name: str, block: nn.Module) -> None:
    """Look, once, whether the wrapper under way has a parameter of the block that takes a gradient, if there is one.

    Args:
        name: the block's, for the error.
        block: which is called.

    Raises:
        ConversionError: it has none.
    """
    wrapper = DistributedDataParallel._active_ddp_module
    if wrapper is None or not torch.is_grad_enabled():
        return
    seen = _SEEN.setdefault(wrapper, WeakSet())
    if block in seen:
        return
    own = {id(found) for found in block.parameters() if isinstance(found, nn.Parameter) and found.requires_grad}
    # What it was told to ignore somebody else looks after.
    is_unknown = own and not wrapper.parameters_to_ignore and own.isdisjoint(map(id, wrapper._module_parameters))
    # PyTorch keeps one for all threads, so that another one's model may come by; and a network may call others.
    if is_unknown and any(inside is block for inside in wrapper.modules()):
        raise ConversionError(
            f"block {name!r} runs inside a DistributedDataParallel that was made without its parameters, so that their "
            "gradients would not be averaged over the processes: the network inside was replaced by a converted copy, "
            "or these parameters (adapters?) are newer than the wrapper. Convert first, add what is to be added, and "
            "wrap the converted model; or momentumnet.convert(ddp.module, ..., inplace=True)"
        )
    seen.add(block)
