"""Models that are prepared for several processes already: what keeps their processes in step does not bear a trace."""

from __future__ import annotations

from torch import nn

from momentumnet.errors import ConversionError

# By name, as some builds of torch have none of them: what to do before, in words.
_WRAPPERS = {
    "FSDPModule": "sharded by fully_shard",
    "FullyShardedDataParallel": "wrapped in FullyShardedDataParallel",
    "DistributedDataParallel": "wrapped in DistributedDataParallel",
}


def check_unwrapped(model: nn.Module) -> None:
    """A trace or a copy of the model leaves it as it was found.

    Raises:
        ConversionError: the model or a module in it is wrapped or sharded: its state between forward and backward would
            be that of a pass whose backward never comes.
    """
    for path, module in model.named_modules():
        found = next((_WRAPPERS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in _WRAPPERS), None)
        if found is not None:
            where = f"module {path!r} of the model" if path else "the model"
            raise ConversionError(
                f"{where} is {found} already, and can be neither traced nor copied then: convert first, and wrap or "
                "shard the converted model. (A description, like=, or streams named by hand without example inputs "
                "need no trace: with inplace=True they convert a sharded model, too.)"
            )
