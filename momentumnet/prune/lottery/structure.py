"""What pruning takes away at a time: single weights, channels or blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from momentumnet.options import one_of
from momentumnet.prune.masking.masks import Masks
from momentumnet.prune.masking.scores import Shares, lowest_masks, shuffled_masks
from momentumnet.prune.structured.blocks import BlockStructure
from momentumnet.prune.structured.channels import ChannelStructure

STRUCTURES = ("weight", "channel", "block")


class Structure(Protocol):
    """How the units of a network that can be pruned are chosen."""

    def prune(self, scores: Mapping[str, Tensor], *, fraction: Shares, scope: str, previous: Masks | None) -> Masks:
        """Masks that take ``fraction`` of the units away that ``previous`` keeps: those with the lowest scores."""

    def shuffle(self, masks: Masks, *, generator: torch.Generator) -> Masks:
        """Masks that take away as many units of each layer, group or stream, drawn by chance."""


class WeightStructure:
    """Single weights (unstructured pruning); the functions of `momentumnet.prune.masking.scores` in one object."""

    def prune(self, scores: Mapping[str, Tensor], *, fraction: Shares, scope: str, previous: Masks | None) -> Masks:
        return lowest_masks(scores, fraction=fraction, scope=scope, previous=previous)

    def shuffle(self, masks: Masks, *, generator: torch.Generator) -> Masks:
        return shuffled_masks(masks, generator=generator)


def structure_of(name: str, model: nn.Module, example_inputs: Any, skip: Collection[str]) -> Structure:
    """The structure of this name for a model.

    Raises:
        ValueError: There is none of this name, or an argument does not go with it.
    """
    one_of("structure", name, STRUCTURES)
    if name == "weight":
        return WeightStructure()
    if example_inputs is None:
        raise ValueError(f"structure={name!r} needs example_inputs, with which the {name}s are found")
    if skip:
        raise ValueError(f"skip names weights, which structure={name!r} does not choose by; leave it out")
    return (ChannelStructure if name == "channel" else BlockStructure)(model, example_inputs)
