"""A converted network's way back to the original one."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from momentumnet.description import model_config
from momentumnet.errors import ConversionError
from momentumnet.options import true_or_false
from momentumnet.planner.plans import batch_watch
from momentumnet.streams.blocks.converted import is_converted, release_all
from momentumnet.streams.blocks.copies import copy_of
from momentumnet.streams.blocks.wrapped import check_is_module

Model = TypeVar("Model", bound=nn.Module)


def revert(model: Model, *, inplace: bool = False) -> Model:
    """The original network back, with the parameters that the converted one has now.

    Args:
        model: a model that `convert` or `transform_to_momentumnet` returned.
        inplace: change this model instead of a copy.

    Raises:
        ConversionError: the model holds no converted block.
        ValueError: ``inplace`` is neither True nor False.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> original = mn.revert(mn.convert(model, torch.randn(2, 5, 16)))
    """
    true_or_false(inplace=inplace)
    check_is_module(model)
    target = model if inplace else copy_of(model)
    if not is_converted(target):
        raise ConversionError("the model holds no converted block; there is nothing to revert")
    release_all(target)
    batch_watch.detach(target)
    model_config.forget(target)
    return target
