"""What the streams of a model have learned beside its parameters, for a training that goes on to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from momentumnet.errors import CheckpointError
from momentumnet.streams.blocks.converted import named_streams

VERSION = 2


def training_state(model: nn.Module) -> dict[str, Any]:
    """What the model's streams have learned of the magnitude of their values: the scales of the exact state.

    A stream whose values outgrew the scale that the example inputs gave has taken a wider one, which a state dict does
    not hold. Save this beside the state dicts of model and optimizer, and a resumed training computes the bits of one
    that was not interrupted.

    Args:
        model: a converted model, or one that holds `MomentumNet` modules. Of a wrapped one
            (``DistributedDataParallel``) take the model inside, as for a state dict.

    Returns:
        Numbers, text, lists and dicts: for ``json``, or ``torch.save`` and ``torch.load(..., weights_only=True)``. A
        model without streams has nothing to tell, which is a state, too.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> model = mn.MomentumNet([torch.nn.Linear(4, 4)] * 3, gamma=0.9, use_backprop=False)
        >>> checkpoint = {"model": model.state_dict(), "streams": mn.training_state(model)}
        >>> mn.load_training_state(model, checkpoint["streams"])
    """
    return {"version": VERSION, "streams": {name: stream.learned() for name, stream in named_streams(model).items()}}


def load_training_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give the model's streams what `training_state` has told of them; what they had learned before is forgotten.

    Args:
        model: converted as the saved one was, from the same example inputs or by ``convert(..., like=description)``.
        state: of `training_state`.

    Raises:
        CheckpointError: it is no such state, or one of other streams; the model is left as it was.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> model = mn.MomentumNet([torch.nn.Linear(4, 4)] * 3, gamma=0.9, use_backprop=False)
        >>> saved = mn.training_state(model)
        >>> mn.load_training_state(model, saved)
    """
    if not isinstance(state, Mapping) or not isinstance(state.get("streams"), Mapping):
        raise CheckpointError(
            f"expected what momentumnet.training_state returned, a mapping with 'version' and 'streams', got {state!r}"
        )
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"this training state has version {state.get('version')!r}, and this version of momentumnet reads version "
            f"{VERSION}; load it with the momentumnet that wrote it, or go on without it (the last bits may differ)"
        )
    streams, saved = named_streams(model), state["streams"]
    missing, unknown = sorted(streams.keys() - saved.keys()), sorted(map(str, saved.keys() - streams.keys()))
    if missing or unknown:
        raise CheckpointError(
            f"the training state belongs to other streams: it lacks {missing}, and the model has "
            f"none of {unknown}. Convert the model as the saved one was; of a wrapped model "
            "(DistributedDataParallel) give the one inside"
        )
    before = {name: stream.learned() for name, stream in streams.items()}
    try:
        for name, stream in streams.items():
            stream.load_learned(saved[name])
    except CheckpointError:
        for name, stream in streams.items():
            stream.load_learned(before[name])
        raise
