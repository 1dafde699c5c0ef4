"""Gamma of a converted network, changed from the next forward on."""

from __future__ import annotations

from fractions import Fraction

from torch import nn

from momentumnet.core.passes.stream import MomentumStream
from momentumnet.description import model_config
from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.converted import is_converted, streams_of


def set_gamma(model: nn.Module, gamma: float | Fraction) -> None:
    """Change gamma of every momentum stream in the model, from the next forward on.

    A backward that is still to come belongs to the forward before, and keeps its gamma. What was recorded in a CUDA
    graph keeps it, too: record it anew. `momentumnet.schedule_gamma` changes gamma step by step.

    Args:
        model: a converted model, wrapped (``DistributedDataParallel``, an adapter) or not, or one that holds
            `MomentumNet` modules.
        gamma: in [0, 1], rounded to the nearest n/d with d <= 128.

    Raises:
        ConversionError: the model holds no momentum stream.
        ValueError: gamma is outside [0, 1], or 1 with the flush; no stream is changed.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> net = mn.MomentumNet([torch.nn.Linear(4, 4)] * 3, gamma=0.9, use_backprop=False)
        >>> mn.set_gamma(net, 0.5)
        >>> net.gamma
        0.5
    """
    for stream in streams_that_take(model, gamma):
        stream.set_gamma(gamma)
    model_config.renew(model)


def streams_that_take(model: nn.Module, *gammas: float | Fraction) -> list[MomentumStream]:
    """The momentum streams of the model; each can have each of these gammas.

    Raises:
        ConversionError: there is no stream.
        ValueError: one cannot have one of the gammas.
    """
    found = streams_of(model)
    streams = [stream for stream in found if stream.has_gamma]
    if not streams:
        cure = "; convert it first"
        if is_converted(model):
            cure = (
                ": it was converted by a plan without one, as plans at gamma 0 are. Revert it, and give gamma= beside "
                "the budget (gamma=1/8)"
            )
        if found:
            cure = f": {', '.join(stream.name for stream in found)} moves by another coupling, which has no gamma"
        raise ConversionError(f"the model holds no momentum stream{cure}")
    for stream in streams:
        for gamma in gammas:
            stream.checked_gamma(gamma)
    return streams
