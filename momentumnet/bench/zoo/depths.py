"""Networks of more layers: the settings that say how many there are, made larger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Of configurations of transformers: the number of layers, the numbers by stage, the kinds of layers in order, and
# the places of one kind of layer among the others.
_STACKS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
    "num_decoder_layers", "l_layers", "x_layers", "r_layers",
)  # fmt: skip
_STAGES = ("depths", "depth", "block_sizes")
_KINDS = ("layer_types", "layers_block_type")
_PLACES = ("attn_layer_indices", "full_attn_idxs")


def lengthened(stages: Sequence[int], layers: int) -> list[int]:
    """The numbers of layers by stage, of which the largest one is at least ``layers``."""
    longest = max(range(len(stages)), key=lambda stage: stages[stage])
    return [max(count, layers) if stage == longest else count for stage, count in enumerate(stages)]


def deepened(settings: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Settings of a configuration of transformers with at least ``layers`` layers in each stack of them.

    Where the layers stand in stages, the longest stage has that many. Patterns of several kinds of layers go on.
    """
    deeper = dict(settings)
    for name, value in settings.items():
        if value is None:
            continue
        if name in _STACKS:
            deeper[name] = max(value, layers)
        elif name in _STAGES:
            deeper[name] = lengthened(value, layers)
        elif name in _KINDS:
            deeper[name] = _repeated(value, layers)
        elif name in _PLACES:
            deeper[name] = list(range(value[0], layers, value[1] - value[0])) if layers > value[-1] else value
        elif name == "attention_types":  # kinds, and how often they come
            deeper[name] = [[_repeated([kind for kinds, times in value for kind in kinds * times], layers), 1]]
    return deeper


def _repeated(kinds: Sequence[str], layers: int) -> list[str]:
    """The kinds of layers, again and again until there are enough."""
    length = max(len(kinds), layers)
    return [kinds[layer % len(kinds)] for layer in range(length)]
